"""GGUF's blocks of 256 weights, whose groups of 16 or 32 have scales of a few bits: the K quants and IQ4_XS.

Every function writes the values of blocks [B, bytes] uint8 to `out` [B, 256] float32, in the order of
operations of ggml's own decoders, so that each bit is the same.
Source: ggml-quants.c of llama.cpp; gguf.quants is its translation to numpy and the oracle of the tests.
"""

from __future__ import annotations

import torch

from strata.kernels.dequant.gguf.small_blocks import half_at, look_up_iq4, shifts


def decode_q2_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d * scale * code - dmin * minimum, scales and minima of four bits in one byte a group of 16."""
    scales = blocks[:, :16]
    out.view(-1, 2, 4, 32).copy_(_fields(blocks[:, 16:80], 2, 4, 32))
    groups = out.view(-1, 16, 16)
    groups.mul_(_scaled(half_at(blocks, 80), scales & 15))
    groups.sub_(_scaled(half_at(blocks, 82), scales >> 4))


def decode_q3_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d * (scale - 32) * (code - 4); bit 2 of a code lies apart, a bit a weight."""
    low = _fields(blocks[:, 32:96], 2, 4, 32).view(-1, 8, 32)
    high = _fields(blocks[:, :32], 1, 8, 32).bitwise_left_shift_(2).view(-1, 8, 32)
    out.view(-1, 8, 32).copy_(low.bitwise_or_(high))
    scale_low = _fields(blocks[:, 96:104], 4, 2, 8).view(-1, 16)
    scale_high = _fields(blocks[:, 104:108], 2, 4, 4).view(-1, 16)
    scales = scale_low.bitwise_or_(scale_high.bitwise_left_shift_(4)).float().sub_(32)
    out.sub_(4).view(-1, 16, 16).mul_(_scaled(half_at(blocks, 108), scales))


def decode_q4_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d * scale * code - dmin * minimum, scales and minima of six bits a group of 32."""
    out.view(-1, 4, 2, 32).copy_(_fields(blocks[:, 16:144], 4, 2, 32))
    _apply_k_scales(blocks, out)


def decode_q5_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """As Q4_K; bit 4 of a code lies apart, a bit a weight."""
    low = _fields(blocks[:, 48:176], 4, 2, 32).view(-1, 8, 32)
    high = _fields(blocks[:, 16:48], 1, 8, 32).bitwise_left_shift_(4).view(-1, 8, 32)
    out.view(-1, 8, 32).copy_(low.bitwise_or_(high))
    _apply_k_scales(blocks, out)


def decode_q6_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d * scale * (code - 32), scales signed bytes, a group of 16; bits 4 and 5 of a code lie apart."""
    low = _fields(blocks[:, :128], 4, 2, 64).view(-1, 8, 32)
    high = _fields(blocks[:, 128:192], 2, 4, 32).bitwise_left_shift_(4).view(-1, 8, 32)
    out.view(-1, 8, 32).copy_(low.bitwise_or_(high))
    scales = blocks[:, 192:208].view(torch.int8)
    out.sub_(32).view(-1, 16, 16).mul_(_scaled(half_at(blocks, 208), scales))


def decode_iq4_xs(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d * (scale - 32) * IQ4_VALUES[code], scales of six bits a group of 32."""
    eight = torch.arange(0, 8, 4, dtype=torch.uint8, device=blocks.device)
    low = (blocks[:, 4:8, None] >> eight).bitwise_and_(15).view(-1, 8)
    two = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = (blocks[:, 2:4, None] >> two).bitwise_and_(3).view(-1, 8)
    scales = low.bitwise_or_(high.bitwise_left_shift_(4)).float().sub_(32)
    look_up_iq4(_fields(blocks[:, 8:136], 4, 2, 16), out)
    out.view(-1, 8, 32).mul_(_scaled(half_at(blocks, 0), scales))


def _fields(packed: torch.Tensor, bits: int, count: int, width: int) -> torch.Tensor:
    """Bytes [B, n * width] -> [B, n, count, width]: field i of every byte, `bits` wide, from the low end."""
    rows = packed.unflatten(1, (-1, 1, width))
    return (rows >> shifts(bits, count, packed.device)).bitwise_and_((1 << bits) - 1)


def _scaled(d: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """d [B, 1] times the groups' scales [B, G], as float32 [B, G, 1]."""
    return (d * scales.float())[:, :, None]


def _apply_k_scales(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Scale and minimum of Q4_K and Q5_K: 6 bits each of 8 groups, in 12 bytes."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, (rest & 15) | (first >> 6 << 4)], dim=1)
    minima = torch.cat([second & 63, (rest >> 4) | (second >> 6 << 4)], dim=1)
    groups = out.view(-1, 8, 32)
    groups.mul_(_scaled(half_at(blocks, 0), scales))
    groups.sub_(_scaled(half_at(blocks, 2), minima))
