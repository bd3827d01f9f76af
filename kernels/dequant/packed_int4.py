"""Decodes integer weights packed into int32 words: GPTQ, AWQ (GEMM) and compressed-tensors pack-quantized.

All three mean (code - zero point) * scale, with a zero point and a scale for an output channel and a group of
input channels. They differ in what is packed along which axis. Knows no files. Words are little-endian.

Legend: N output channels, K input channels, G groups, R rows and C columns of a tile, W words.
"""

from __future__ import annotations

import torch

from strata.kernels.dequant.blocks import Scratch, check_dtype, check_out, check_shape, tile_of
from strata.kernels.dequant.groups import decode_groups, group_columns
from strata.kernels.dequant.packed_operator import decode_packed
from strata.kernels.dequant.parts import GptqParts, PackedParts
from strata.kernels.triton_support.operators import has_kernels


def dequantize_gptq(stored: GptqParts, out: torch.Tensor) -> torch.Tensor:
    """Fills `out` with GPTQ weights, transposed to [N, K]; computed in float32 and rounded once.

    With P = 32 / bits, code (k, n) is bits `bits * (k % P)` and up of qweight[k // P, n], and zero point (g,
    n) the same of qzeros[g, n // P]. In the v1 format what is stored is less by one in every field: GPTQModel
    subtracts 1 from each field of the whole word, with borrows, so one addition to the word undoes it
    exactly.

    Args:
        stored: words, scales and how they are packed.
        out: [N, K] float32, bfloat16 or float16, contiguous; overwritten.

    Returns:
        `out`. Extra memory: a few blocks.

    Raises:
        ValueError: other bits (3-bit codes straddle words), or a shape or dtype other than these.

    Source: Frantar et al. 2023, GPTQ; storage as in AutoGPTQ's and GPTQModel's torch kernels.
    """
    bits, qweight, qzeros, scales = stored.bits, stored.qweight, stored.qzeros, stored.scales
    fields = _fields_per_word(bits, (2, 4, 8))
    check_out(out)
    _check_gptq(stored, out, fields)
    group_size = out.shape[1] if stored.group_size == -1 else stored.group_size
    grouping = group_columns(stored.g_idx, group_size, scales.shape[0], out)
    ones = sum(stored.zero_offset << shift for shift in range(0, 32, bits))
    if has_kernels(out.device):
        groups = (grouping.of_column, bits, grouping.size, ones)
        decode_packed(qweight.t(), qzeros.t(), scales.t(), *groups, False, True, out)
        return out
    scratch, row_scratch = Scratch(out.device), Scratch(out.device)

    def read_codes(rows: slice, columns: slice) -> torch.Tensor:
        words = _transposed(tile_of(qweight, _word_range(columns, fields), rows), scratch)
        return _unpack_fields(words.view(torch.uint8), bits, scratch)

    def read_groups(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        packed = qzeros[:, _word_range(rows, fields)]
        words = row_scratch.take("words", tuple(packed.shape), torch.int32).copy_(packed).add_(ones)
        zeros_GR = _unpack_fields(words.view(torch.uint8), bits, row_scratch)
        return zeros_GR.t().float(), scales[:, rows].t().float()

    return decode_groups(read_codes, read_groups, grouping, out, scratch)


def dequantize_awq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, group_size: int, out: torch.Tensor
) -> torch.Tensor:
    """Fills `out` with 4-bit AWQ weights of the GEMM version, transposed to [N, K]; float32, rounded once.

    The eight nibbles of a word, from the low end, are output channels 0, 2, 4, 6, 1, 3, 5, 7 of its eight.

    Args:
        qweight: int32 [K, N / 8].
        qzeros: int32 [G, N / 8].
        scales: [G, N], any float dtype.
        group_size: input channels a group; -1 for K.
        out: [N, K] float32, bfloat16 or float16, contiguous; overwritten.

    Returns:
        `out`. Extra memory: a few blocks.

    Raises:
        ValueError: a shape or dtype other than these.

    Source: Lin et al. 2024, AWQ; storage as in AutoAWQ's WQLinear_GEMM.
    """
    check_out(out)
    num_rows, num_columns = out.shape
    _check_divisible("rows", num_rows, 8)
    group_size = num_columns if group_size == -1 else group_size
    num_groups = scales.shape[0]
    _check_words("qweight", qweight, (num_columns, num_rows // 8))
    _check_words("qzeros", qzeros, (num_groups, num_rows // 8))
    check_shape("scales", scales, (num_groups, num_rows))
    if has_kernels(out.device):
        group_columns(None, group_size, num_groups, out)
        decode_packed(qweight.t(), qzeros.t(), scales.t(), None, 4, group_size, 0, True, False, out)
        return out
    scratch, row_scratch = Scratch(out.device), Scratch(out.device)
    nibbles = torch.arange(8, dtype=torch.int32, device=out.device)  # made there: a copy would be waited for
    shifts = (nibbles // 2 + nibbles % 2 * 4)[:, None] * 4

    def unpack(words_CW: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        words_WC = _transposed(words_CW, scratch)
        codes = scratch.take("codes", (words_WC.shape[0], 8, words_WC.shape[1]), torch.int32)
        torch.bitwise_right_shift(words_WC[:, None], shifts, out=codes)
        return codes.bitwise_and_(15).flatten(0, 1)

    def read_codes(rows: slice, columns: slice) -> torch.Tensor:
        return unpack(tile_of(qweight, columns, _word_range(rows, 8)), scratch)

    def read_groups(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        zeros_RG = unpack(qzeros[:, _word_range(rows, 8)], row_scratch)
        return zeros_RG.float(), scales[:, rows].t().float()

    grouping = group_columns(None, group_size, num_groups, out)
    return decode_groups(read_codes, read_groups, grouping, out, scratch)


def dequantize_packed(stored: PackedParts, out: torch.Tensor) -> torch.Tensor:
    """Fills `out` with compressed-tensors' pack-quantized weights, computed in float32 and rounded once.

    Stored codes and zero points are unsigned, 2^(bits - 1) above their signed values. Codes are packed along
    K, the low end of a word first; zero points along N.

    Args:
        stored: words, scales and how they are packed.
        out: [N, K] float32, bfloat16 or float16, contiguous; overwritten.

    Returns:
        `out`. Extra memory: a few blocks.

    Raises:
        ValueError: other bits, a shape or dtype other than these, or K / G not whole with neither group_size
            nor g_idx given.

    Source: compressed_tensors.compressors.pack_quantized.
    """
    bits, packed, scale, zero_point = stored.bits, stored.packed, stored.scale, stored.zero_point
    fields = _fields_per_word(bits, (4, 8))
    check_out(out)
    _check_packed(stored, out, fields)
    group_size = stored.group_size or -(-out.shape[1] // scale.shape[-1])
    grouping = group_columns(stored.g_idx, group_size, scale.shape[-1], out)
    if has_kernels(out.device):
        groups = (grouping.of_column, bits, grouping.size, 0)
        decode_packed(packed, zero_point, scale, *groups, False, True, out)
        return out
    scratch, row_scratch = Scratch(out.device), Scratch(out.device)

    def read_codes(rows: slice, columns: slice) -> torch.Tensor:
        words = tile_of(packed, rows, _word_range(columns, fields))
        codes = _unpack_fields(words.view(torch.uint8), bits, scratch)
        return codes[:, : columns.stop - columns.start]

    def read_groups(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        scale_RG = scale[rows].float()
        if zero_point is None:
            return torch.full_like(scale_RG, 1 << (bits - 1)), scale_RG
        words = _transposed(zero_point[_word_range(rows, fields)], row_scratch)
        zeros_GR = _unpack_fields(words.view(torch.uint8), bits, row_scratch)
        return zeros_GR[:, : rows.stop - rows.start].t().float(), scale_RG

    return decode_groups(read_codes, read_groups, grouping, out, scratch)


def _check_gptq(stored: GptqParts, out: torch.Tensor, fields: int) -> None:
    num_rows, num_columns = out.shape
    _check_divisible("columns", num_columns, fields)
    _check_divisible("rows", num_rows, fields)
    num_groups = stored.scales.shape[0]
    _check_words("qweight", stored.qweight, (num_columns // fields, num_rows))
    _check_words("qzeros", stored.qzeros, (num_groups, num_rows // fields))
    check_shape("scales", stored.scales, (num_groups, num_rows))
    if stored.zero_offset not in (0, 1):
        raise ValueError(f"zero_offset is {stored.zero_offset}, expected 1 (gptq) or 0 (gptq_v2)")


def _check_packed(stored: PackedParts, out: torch.Tensor, fields: int) -> None:
    num_rows, num_columns = out.shape
    num_groups = stored.scale.shape[-1]
    check_shape("scale", stored.scale, (num_rows, num_groups))
    _check_words("packed", stored.packed, (num_rows, -(-num_columns // fields)))
    if stored.zero_point is not None:
        _check_words("zero_point", stored.zero_point, (-(-num_rows // fields), num_groups))
    if stored.group_size is None and stored.g_idx is None and num_columns % num_groups:
        raise ValueError(
            f"{num_columns} columns in {num_groups} groups: expected group_size or g_idx to be given"
        )


def _fields_per_word(bits: int, supported: tuple[int, ...]) -> int:
    if bits not in supported:
        raise ValueError(f"bits is {bits}, expected one of {', '.join(map(str, supported))}")
    return 32 // bits


def _check_words(name: str, words: torch.Tensor, shape: tuple[int, ...]) -> None:
    check_dtype(name, words, torch.int32)
    check_shape(name, words, shape)
    if not words.is_contiguous():
        raise ValueError(f"{name} has strides {words.stride()}, expected a contiguous tensor")


def _check_divisible(axis: str, length: int, fields: int) -> None:
    if length % fields:
        raise ValueError(f"out has {length} {axis}, expected a multiple of {fields}, the codes of a word")


def _word_range(fields_range: slice, fields: int) -> slice:
    """The words that hold a range of fields; it must start at a word."""
    return slice(fields_range.start // fields, -(-fields_range.stop // fields))


def _transposed(words: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """A contiguous transpose of int32 [A, B]."""
    return scratch.take("words", (words.shape[1], words.shape[0]), torch.int32).copy_(words.t())


def _unpack_fields(packed: torch.Tensor, bits: int, scratch: Scratch) -> torch.Tensor:
    """Codes uint8 [A, B * 8 / bits] of bytes [A, B], the low end first.

    A byte is widened to as many bytes as it holds codes. Halving the distance step by step, x | x << s moves
    the upper half of what is left in a field to the next field; the mask drops the rest.
    """
    if bits == 8:
        return packed
    dtype, steps = (
        (torch.int16, ((4, 0x0F0F),)) if bits == 4 else (torch.int32, ((12, 0x000F000F), (6, 0x03030303)))
    )
    spread = scratch.take("spread", tuple(packed.shape), dtype).copy_(packed)
    shifted = scratch.take("shifted", tuple(packed.shape), dtype)
    for shift, mask in steps:
        torch.mul(spread, 1 << shift, out=shifted)
        spread.bitwise_or_(shifted).bitwise_and_(mask)
    return spread.view(torch.uint8)
