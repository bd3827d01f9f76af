"""Decodes bitsandbytes' 4-bit storage (NF4, FP4), nested block scales included. Knows no files.

A weight [N, K] is flattened; every `blocksize` consecutive weights share a float32 absmax, and two codes
share a byte, the earlier weight in the high half. Encoding is in four_bit_encode.py and offered here as well.
"""

from __future__ import annotations

from typing import Any

import torch

from strata.kernels.dequant.blocks import block_elements, check_dtype, check_out, check_shape
from strata.kernels.dequant.four_bit_encode import (
    NF4_QUANT_MAP,
    build_dynamic_map,
    quantize_absmax,
    quantize_nf4,
)
from strata.kernels.dequant.parts import FourBitParts
from strata.kernels.triton_support.operators import define_filler, has_kernels

__all__ = [
    "NF4_QUANT_MAP",
    "build_dynamic_map",
    "dequantize_4bit",
    "dequantize_absmax",
    "quantize_absmax",
    "quantize_nf4",
]

BACKENDS = ("torch", "bitsandbytes")

BITSANDBYTES_CHUNK = 1 << 21
"""Weights a call of bitsandbytes' kernel: its result is a new tensor, here of at most 8 MiB."""


def dequantize_4bit(stored: FourBitParts, out: torch.Tensor, backend: str = "torch") -> torch.Tensor:
    """Fills `out` with quant_map[code] * absmax of its block, computed in float32 and rounded once.

    That is what bitsandbytes' own kernels compute, so results are equal bit for bit.

    Args:
        stored: codes and scales.
        out: [N, K] float32, bfloat16 or float16, contiguous; overwritten.
        backend: "torch", or "bitsandbytes" for its CPU and CUDA kernels, which know NF4 in blocks below 2,048
            and an even number of weights only (the rest they would compile or decode with a rounded table).

    Returns:
        `out`. Extra memory: one block in float32 and its indexes; 8 MiB with the bitsandbytes backend.

    Raises:
        ValueError: a shape, dtype or backend other than these.

    Source: Dettmers et al. 2023, QLoRA, section 3; storage as in bitsandbytes.functional.dequantize_4bit.
    """
    check_out(out)
    _check_parts(stored, out.numel())
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend == "bitsandbytes":
        _decode_by_bitsandbytes(stored, out.view(-1))
    elif has_kernels(out.device):
        decode_4bit(stored.packed, stored.absmax, stored.quant_map, stored.blocksize, out)
    else:
        _decode(stored, out.view(-1))
    return out


def dequantize_absmax(
    codes: torch.Tensor,
    quant_map: torch.Tensor,
    nested_absmax: torch.Tensor,
    nested_blocksize: int,
    offset: float,
) -> torch.Tensor:
    """Block scales that were quantised themselves: quant_map[code] * nested_absmax of its block + offset.

    Args:
        codes: uint8 [num_blocks], flattened if not.
        quant_map: float32 [256], `nested_quant_map` in a file.
        nested_absmax: float32 [ceil(num_blocks / nested_blocksize)].
        nested_blocksize: block scales a nested block, 256 in bitsandbytes.
        offset: `nested_offset` in a file; taken as float32.

    Returns:
        float32 [num_blocks], product and sum each rounded to float32, as bitsandbytes does.

    Raises:
        ValueError: a shape or dtype other than these.

    Source: Dettmers et al. 2023, QLoRA, section 3, double quantization.
    """
    check_dtype("codes", codes, torch.uint8)
    check_dtype("quant_map", quant_map, torch.float32)
    check_shape("quant_map", quant_map, (256,))
    codes = codes.reshape(-1)
    check_shape("nested_absmax", nested_absmax, (-(-codes.numel() // nested_blocksize),))
    scales = nested_absmax.new_empty(codes.numel(), dtype=torch.float32)
    fill = decode_absmax if has_kernels(codes.device) else _fill_absmax
    fill(codes, quant_map, nested_absmax, nested_blocksize, offset, scales)
    return scales


def _fill_absmax(
    codes: torch.Tensor,
    quant_map: torch.Tensor,
    nested_absmax: torch.Tensor,
    nested_blocksize: int,
    offset: float,
    scales: torch.Tensor,
) -> None:
    num_nested = max(1, block_elements(codes.device) // nested_blocksize)
    step = num_nested * nested_blocksize
    parts = zip(codes.split(step), nested_absmax.split(num_nested), scales.split(step), strict=True)
    for codes_part, nested_part, scales_part in parts:
        torch.index_select(quant_map, 0, codes_part.int(), out=scales_part)
        _scale_blocks(scales_part, nested_part, nested_blocksize)
    scales.add_(offset)


def _absmax_on_card(*arguments: Any) -> None:
    from strata.kernels.dequant.triton_kernels import launch_absmax

    launch_absmax(*arguments)


decode_absmax = define_filler(
    "decode_absmax",
    "Tensor codes, Tensor quant_map, Tensor nested_absmax, int nested_blocksize, float offset",
    _fill_absmax,
    _absmax_on_card,
)


def _check_parts(stored: FourBitParts, num_weights: int) -> None:
    check_dtype("packed", stored.packed, torch.uint8)
    check_dtype("absmax", stored.absmax, torch.float32)
    check_shape("packed (flattened)", stored.packed.reshape(-1), (-(-num_weights // 2),))
    if stored.blocksize <= 0 or stored.blocksize % 2:
        raise ValueError(f"blocksize is {stored.blocksize}, expected a positive even number")
    check_shape("absmax", stored.absmax, (-(-num_weights // stored.blocksize),))
    check_shape("quant_map", stored.quant_map, (16,))


def _decode(stored: FourBitParts, out: torch.Tensor) -> None:
    """Block by block: bytes -> indexes -> pairs of float32 -> scaled in place -> out.

    A table of the 256 possible bytes holds both values of a byte in one 64-bit entry, so that one look-up
    gives two weights.
    """
    packed, absmax, blocksize = stored.packed.reshape(-1), stored.absmax, stored.blocksize
    quant_map = stored.quant_map
    pairs = torch.stack((quant_map.repeat_interleave(16), quant_map.repeat(16)), dim=1).float()
    table = pairs.view(torch.int64).flatten()
    step = max(1, min(block_elements(out.device) // blocksize, absmax.numel())) * blocksize
    indexes = torch.empty(step // 2, dtype=torch.int32, device=out.device)
    values = torch.empty(step // 2, dtype=torch.int64, device=out.device)
    weights = values.view(torch.float32)
    blocks_BS = weights.view(-1, blocksize)
    parts = zip(
        packed.split(step // 2), absmax[:, None].split(step // blocksize), out.split(step), strict=True
    )
    for packed_part, absmax_B1, out_part in parts:
        if out_part.numel() == step:
            torch.index_select(table, 0, indexes.copy_(packed_part), out=values)
            blocks_BS.mul_(absmax_B1)
            out_part.copy_(weights)
        else:
            _decode_rest(packed_part, absmax_B1[:, 0], table, blocksize, out_part)


def _four_bit_on_card(
    packed: torch.Tensor, absmax: torch.Tensor, quant_map: torch.Tensor, blocksize: int, out: torch.Tensor
) -> None:
    from strata.kernels.dequant.triton_kernels import launch_four_bit

    launch_four_bit(FourBitParts(packed=packed, absmax=absmax, quant_map=quant_map, blocksize=blocksize), out)


def _four_bit_plain(
    packed: torch.Tensor, absmax: torch.Tensor, quant_map: torch.Tensor, blocksize: int, out: torch.Tensor
) -> None:
    stored = FourBitParts(packed=packed, absmax=absmax, quant_map=quant_map, blocksize=blocksize)
    _decode(stored, out.view(-1))


decode_4bit = define_filler(
    "decode_4bit",
    "Tensor packed, Tensor absmax, Tensor quant_map, int blocksize",
    _four_bit_plain,
    _four_bit_on_card,
)


def _decode_rest(
    packed: torch.Tensor, absmax: torch.Tensor, table: torch.Tensor, blocksize: int, out: torch.Tensor
) -> None:
    """The same for fewer weights, of which the last block may be partial and the last byte half used."""
    weights = table.index_select(0, packed.int()).view(torch.float32)[: out.numel()]
    _scale_blocks(weights, absmax, blocksize)
    out.copy_(weights)


def _scale_blocks(weights: torch.Tensor, absmax: torch.Tensor, blocksize: int) -> None:
    """Multiplies flat weights by their block's scale in place; the last block may be partial."""
    num_whole = weights.numel() // blocksize
    weights[: num_whole * blocksize].view(-1, blocksize).mul_(absmax[:num_whole, None])
    if num_whole < absmax.numel():
        weights[num_whole * blocksize :].mul_(absmax[num_whole])


def _decode_by_bitsandbytes(stored: FourBitParts, out: torch.Tensor) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError(f"backend 'bitsandbytes' needs the package bitsandbytes ({error})") from error
    packed, absmax, blocksize = stored.packed.reshape(-1), stored.absmax, stored.blocksize
    if not torch.equal(stored.quant_map.cpu(), NF4_QUANT_MAP) or out.numel() % 2 or blocksize >= 2048:
        raise ValueError(
            "backend 'bitsandbytes' needs an even number of weights, blocks below 2048 and NF4's quant_map;"
            f" got {out.numel()} weights in blocks of {blocksize}. Use backend 'torch'"
        )
    step = BITSANDBYTES_CHUNK // blocksize * blocksize
    parts = zip(packed.split(step // 2), absmax.split(step // blocksize), out.split(step), strict=True)
    decode = torch.ops.bitsandbytes.dequantize_4bit.default
    for packed_part, absmax_part, out_part in parts:
        shape = (1, out_part.numel())
        out_part.copy_(decode(packed_part[:, None], absmax_part, blocksize, "nf4", shape, out.dtype)[0])
