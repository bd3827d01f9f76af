"""Decoders of stored weights as Triton kernels, one launch a matrix. Imports triton.

value * scale in float32, rounded once to the output's dtype, without fused multiply-adds: bit for bit what
the decoders in torch give. Legend: N output channels, K input channels, G groups, P codes of a word.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from strata.kernels.dequant.parts import FourBitParts

BYTES, ABSMAX_BLOCK, COLUMNS = 1024, 1024, 1024
TILE_ROWS, TILE_COLUMNS = 32, 64


@triton.jit
def four_bit_kernel(packed, absmax, quant_map, out, num_weights, blocksize, BYTES: tl.constexpr):
    """Two weights a byte, the earlier one in the high half, a scale every `blocksize` weights."""
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    codes = tl.load(packed + byte, mask=2 * byte < num_weights, other=0).to(tl.int32)
    both = tl.interleave(codes >> 4, codes & 15)
    weight = tl.program_id(0).to(tl.int64) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    mask = weight < num_weights
    scale = tl.load(absmax + weight // blocksize, mask=mask, other=0.0)
    value = tl.load(quant_map + both).to(tl.float32) * scale
    tl.store(out + weight, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def absmax_kernel(
    codes, quant_map, nested_absmax, out, num_blocks, nested_blocksize, offset, BLOCK: tl.constexpr
):
    """Block scales that are quantised themselves."""
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = block < num_blocks
    code = tl.load(codes + block, mask=mask, other=0).to(tl.int32)
    nested = tl.load(nested_absmax + block // nested_blocksize, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + block, tl.load(quant_map + code) * nested + offset, mask=mask)


@triton.jit
def _shift(field, BITS: tl.constexpr, IS_AWQ: tl.constexpr):
    """Where a field of a word begins; AWQ's nibbles are channels 0, 2, 4, 6, 1, 3, 5, 7."""
    if IS_AWQ:
        return (field // 2 + field % 2 * 4) * 4
    return field * BITS


@triton.jit
def packed_kernel(
    words,
    zeros,
    scales,
    column_group,
    out,
    num_rows,
    num_columns,
    group_size,
    word_row,
    word_column,
    zero_row,
    zero_group,
    scale_row,
    scale_group,
    ones,
    BITS: tl.constexpr,
    ALONG_COLUMNS: tl.constexpr,
    IS_AWQ: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out [N, K] = (code - zero point) * scale; zero points are packed along N, codes along N or K."""
    FIELDS: tl.constexpr = 32 // BITS
    MASK: tl.constexpr = (1 << BITS) - 1
    n = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    k = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    mask = (n < num_rows) & (k < num_columns)
    if HAS_GROUPS:
        group = tl.load(column_group + k, mask=k < num_columns, other=0).to(tl.int64)
    else:
        group = k // group_size
    if ALONG_COLUMNS:
        word = tl.load(words + n * word_row + (k // FIELDS) * word_column, mask=mask, other=0)
        code = (word >> _shift((k % FIELDS).to(tl.int32), BITS, IS_AWQ)) & MASK
    else:
        word = tl.load(words + (n // FIELDS) * word_row + k * word_column, mask=mask, other=0)
        code = (word >> _shift((n % FIELDS).to(tl.int32), BITS, IS_AWQ)) & MASK
    if HAS_ZEROS:
        zero_word = tl.load(zeros + (n // FIELDS) * zero_row + group * zero_group, mask=mask, other=0) + ones
        zero = (zero_word >> _shift((n % FIELDS).to(tl.int32), BITS, IS_AWQ)) & MASK
        code -= zero
    else:
        code -= 1 << (BITS - 1)
    scale = tl.load(scales + n * scale_row + group * scale_group, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + n * num_columns + k, (code.to(tl.float32) * scale).to(out.dtype.element_ty), mask=mask)


@triton.jit
def fp8_kernel(
    codes,
    scales,
    out,
    num_columns,
    code_row,
    block_rows,
    block_columns,
    scale_row,
    scale_column,
    COLUMNS: tl.constexpr,
):
    """out [N, K] = float8 e4m3fn * scale of its block, a row and COLUMNS columns a program.

    Exponent and mantissa moved to the same fields of a float16 are the number / 256, subnormals included;
    only NaN, all seven bits, would come out as a number. So cards without float8 decode it as well.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < num_columns
    bits = tl.load(codes + row * code_row + column, mask=mask, other=0).to(tl.int32)
    moved = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
    value = moved.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    value = tl.where((bits & 0x7F) == 0x7F, float("nan"), value)
    at = (row // block_rows) * scale_row + (column // block_columns) * scale_column
    value *= tl.load(scales + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * num_columns + column, value.to(out.dtype.element_ty), mask=mask)


def launch_four_bit(stored: FourBitParts, out: torch.Tensor) -> None:
    """Fills out [N, K] with NF4 or FP4 weights."""
    num_weights = out.numel()
    if num_weights:
        with torch.cuda.device_of(out):
            four_bit_kernel[(triton.cdiv(num_weights, 2 * BYTES),)](
                stored.packed.reshape(-1),
                stored.absmax,
                stored.quant_map,
                out,
                num_weights,
                stored.blocksize,
                BYTES=BYTES,
                enable_fp_fusion=False,
            )


def launch_absmax(
    codes: torch.Tensor,
    quant_map: torch.Tensor,
    nested_absmax: torch.Tensor,
    nested_blocksize: int,
    offset: float,
    out: torch.Tensor,
) -> None:
    """Fills out [num_blocks] float32 with block scales."""
    if out.numel():
        with torch.cuda.device_of(out):
            absmax_kernel[(triton.cdiv(out.numel(), ABSMAX_BLOCK),)](
                codes,
                quant_map,
                nested_absmax,
                out,
                out.numel(),
                nested_blocksize,
                offset,
                BLOCK=ABSMAX_BLOCK,
                enable_fp_fusion=False,
            )


def launch_packed(
    words: torch.Tensor,
    zeros: torch.Tensor | None,
    scales: torch.Tensor,
    column_group: torch.Tensor | None,
    bits: int,
    group_size: int,
    ones: int,
    is_awq: bool,
    along_columns: bool,
    out: torch.Tensor,
) -> None:
    """Fills out [N, K] with integer weights of int32 words.

    Args:
        words: codes, their words [N, K / P] `along_columns`, else [N / P, K]; any strides.
        zeros: zero points [N / P, G], any strides; None for the middle of the codes.
        scales: [N, G], any strides.
        column_group: int32 [K], or None for k // group_size.
        bits: of a code.
        group_size: columns a group.
        ones: added to a word of zero points, as an int32.
        is_awq: the fields of a word lie in AWQ's order.
        along_columns: a word holds codes of one row.
        out: overwritten.
    """
    num_rows, num_columns = out.shape
    if not out.numel():
        return
    given = words if zeros is None else zeros
    groups = words if column_group is None else column_group
    with torch.cuda.device_of(out):
        packed_kernel[(triton.cdiv(num_rows, TILE_ROWS), triton.cdiv(num_columns, TILE_COLUMNS))](
            words,
            given,
            scales,
            groups,
            out,
            num_rows,
            num_columns,
            group_size,
            *words.stride(),
            *given.stride(),
            *scales.stride(),
            ones,
            BITS=bits,
            ALONG_COLUMNS=along_columns,
            IS_AWQ=is_awq,
            HAS_ZEROS=zeros is not None,
            HAS_GROUPS=column_group is not None,
            ROWS=TILE_ROWS,
            COLUMNS=TILE_COLUMNS,
            enable_fp_fusion=False,
        )


def launch_fp8(
    codes: torch.Tensor, scales: torch.Tensor, block_rows: int, block_columns: int, out: torch.Tensor
) -> None:
    """Fills out [N, K] with float8 codes, rows maybe apart, times a scale [N / b0, K / b1] a block."""
    num_rows, num_columns = out.shape
    if out.numel():
        with torch.cuda.device_of(out):
            fp8_kernel[(num_rows, triton.cdiv(num_columns, COLUMNS))](
                codes.view(torch.uint8),
                scales,
                out,
                num_columns,
                codes.stride(0),
                block_rows,
                block_columns,
                *scales.stride(),
                COLUMNS=COLUMNS,
                enable_fp_fusion=False,
            )
