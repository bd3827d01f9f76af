"""Decodes int8 weights with one scale an output channel. Knows no files and no quantisation libraries.

Legend: N output channels, K input channels.
"""

from __future__ import annotations

import torch

from strata.kernels.dequant.blocks import Scratch, check_dtype, check_out, row_tiles, tile_of


def dequantize_channels(codes: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Fills `out` with codes * scale, computed in float32 and rounded once.

    Args:
        codes: int8 [N, K].
        scale: [N] or [N, 1], any float dtype. For bitsandbytes' LLM.int8() pass SCB / 127.
        out: [N, K] float32, bfloat16 or float16, contiguous; overwritten.

    Returns:
        `out`. Extra memory: one block in float32.

    Raises:
        ValueError: a shape or dtype other than these.

    Source: Dettmers et al. 2022, LLM.int8(), section 3.1; the int-quantized format of compressed-tensors.
    """
    check_dtype("codes", codes, torch.int8)
    check_out(out, tuple(codes.shape))
    scale_N1 = channel_scale(scale, out.shape[0])
    scratch = Scratch(out.device)
    for rows, columns in row_tiles(out):
        target = tile_of(out, rows, columns)
        work = scratch.float32(target)
        work.copy_(tile_of(codes, rows, columns))
        work.mul_(scale_N1[rows])
        if work is not target:
            target.copy_(work)
    return out


def channel_scale(scale: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The scale of every output channel as float32 [N, 1].

    Args:
        scale: [N] or [N, 1], any float dtype.
        num_rows: N.

    Raises:
        ValueError: another shape.
    """
    if tuple(scale.shape) not in ((num_rows,), (num_rows, 1)):
        raise ValueError(f"scale has shape {list(scale.shape)}, expected [{num_rows}] or [{num_rows}, 1]")
    return scale.reshape(num_rows, 1).float()
