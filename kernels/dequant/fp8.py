"""Decodes float8 e4m3fn weights with a scale a block, a channel or a tensor. Knows no files.

Legend: N output channels, K input channels, b0 x b1 weights of a block.
"""

from __future__ import annotations

import torch

from strata.kernels.dequant.blocks import Scratch, check_dtype, check_out, check_shape, row_tiles, tile_of
from strata.kernels.dequant.int8 import channel_scale
from strata.kernels.triton_support.operators import define_filler, has_kernels

LARGEST_E4M3FN = 448.0


def dequantize_fp8_blocks(
    codes: torch.Tensor, scale_inv: torch.Tensor, block_size: tuple[int, int], out: torch.Tensor
) -> torch.Tensor:
    """Fills `out` with codes * scale_inv[row // b0, column // b1], computed in float32 and rounded once.

    Args:
        codes: float8_e4m3fn [N, K].
        scale_inv: [ceil(N / b0), ceil(K / b1)], any float dtype; despite its name a factor, not a divisor.
        block_size: (b0, b1), both positive; the last block of either axis may be smaller.
        out: [N, K] float32, bfloat16 or float16, contiguous; overwritten.

    Returns:
        `out`. Extra memory: a few blocks and one float32 a column.

    Raises:
        ValueError: a shape or dtype other than these.

    Source: DeepSeek-V3 technical report, section 3.3; `weight_scale_inv` of Hugging Face's fine-grained fp8.
    """
    b0, b1 = block_size
    check_dtype("codes", codes, torch.float8_e4m3fn)
    check_out(out, tuple(codes.shape))
    num_rows, num_columns = out.shape
    check_shape("scale_inv", scale_inv, (-(-num_rows // b0), -(-num_columns // b1)))
    decode = decode_fp8 if has_kernels(out.device) else _decode_blocks
    decode(codes, scale_inv, b0, b1, out)
    return out


def _decode_blocks(codes: torch.Tensor, scale_inv: torch.Tensor, b0: int, b1: int, out: torch.Tensor) -> None:
    num_rows, num_columns = out.shape
    scratch = Scratch(out.device)
    for scales, first_row in zip(scale_inv, range(0, num_rows, b0), strict=True):
        last_row = min(first_row + b0, num_rows)
        scale_1K = scales.float().repeat_interleave(b1)[None, :num_columns]
        _decode(codes[first_row:last_row], scale_1K, out[first_row:last_row], scratch)


def _fp8_on_card(codes: torch.Tensor, scale: torch.Tensor, b0: int, b1: int, out: torch.Tensor) -> None:
    from strata.kernels.dequant.triton_kernels import launch_fp8

    launch_fp8(codes, scale, b0, b1, out)


decode_fp8 = define_filler(
    "decode_fp8", "Tensor codes, Tensor scale, int b0, int b1", _decode_blocks, _fp8_on_card
)


def dequantize_fp8_channels(codes: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Fills `out` with codes * scale, computed in float32 and rounded once.

    Args:
        codes: float8_e4m3fn [N, K].
        scale: [N, 1] or [N] (a scale a channel), or one element of any shape (a scale a tensor).
        out: [N, K] float32, bfloat16 or float16, contiguous; overwritten.

    Returns:
        `out`. Extra memory: a few blocks.

    Raises:
        ValueError: a shape or dtype other than these.

    Source: the float-quantized format of compressed-tensors.
    """
    check_dtype("codes", codes, torch.float8_e4m3fn)
    check_out(out, tuple(codes.shape))
    is_one = scale.numel() == 1
    scale_N1 = scale.float().reshape(1, 1) if is_one else channel_scale(scale, out.shape[0])
    if has_kernels(out.device):
        decode_fp8(codes, scale_N1, max(1, out.shape[0]) if is_one else 1, max(1, out.shape[1]), out)
        return out
    return _decode(codes, scale_N1, out, Scratch(out.device))


def _decode(codes: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """out = codes * scale, for a scale [N or 1, K or 1]."""
    scale_NK = scale.expand(out.shape)
    for rows, columns in row_tiles(out):
        target = tile_of(out, rows, columns)
        work = scratch.float32(target)
        _widen(tile_of(codes, rows, columns), work, scratch)
        work.mul_(tile_of(scale_NK, rows, columns))
        if work is not target:
            target.copy_(work)
    return out


def _widen(codes: torch.Tensor, work: torch.Tensor, scratch: Scratch) -> None:
    """Writes float8 codes as float32.

    torch converts float8 on CPUs one number at a time. An e4m3fn number with its exponent and mantissa moved
    to the same fields of a float16 is that number / 256, subnormals included, because the exponent biases are
    7 and 15; so integer operations and the float16 conversion do, both vectorised. Only NaN (all seven bits
    set) comes out as a number, 480, above the largest of the format: tiles in which that happens take torch's
    conversion.
    """
    if work.device.type != "cpu":
        work.copy_(codes)
        return
    bits = scratch.take("float16 bits", tuple(codes.shape), torch.int16)
    # Sign-extended from 8 bits: sssssssss eeee mmm. Times 128: ss eeee mmm 0000000, and the second s must go.
    bits.copy_(codes.view(torch.int8)).mul_(128).bitwise_and_(~0x4000)
    work.copy_(bits.view(torch.float16)).mul_(256.0)
    smallest, largest = torch.aminmax(work)
    if max(-smallest.item(), largest.item()) > LARGEST_E4M3FN:
        work.copy_(codes)
