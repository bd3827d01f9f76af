"""GGUF's blocks of 32 weights: a scale, perhaps a minimum, and codes of 4, 5 or 8 bits.

Every function writes the values of blocks [B, bytes] uint8 to `out` [B, 32] float32, in the order of
operations of ggml's own decoders, so that each bit is the same.
Source: ggml-quants.c of llama.cpp; gguf.quants is its translation to numpy and the oracle of the tests.
"""

from __future__ import annotations

import torch

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def half_at(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 of every block at a byte, as float32 [B, 1]."""
    return blocks[:, at : at + 2].view(torch.float16).float()


def shifts(step: int, count: int, device: torch.device) -> torch.Tensor:
    """0, step, 2 * step, ...: uint8 [count, 1], against which bytes [..., 1, W] become [..., count, W]."""
    return torch.arange(0, step * count, step, dtype=torch.uint8, device=device)[:, None]


def decode_q4_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """(code - 8) * d."""
    _copy_nibbles(blocks[:, 2:18], out)
    out.sub_(8).mul_(half_at(blocks, 0))


def decode_q4_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """code * d + m."""
    _copy_nibbles(blocks[:, 4:20], out)
    out.mul_(half_at(blocks, 0)).add_(half_at(blocks, 2))


def decode_q5_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """(code - 16) * d."""
    out.copy_(_five_bits(blocks[:, 2:6], blocks[:, 6:22]))
    out.sub_(16).mul_(half_at(blocks, 0))


def decode_q5_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """code * d + m."""
    out.copy_(_five_bits(blocks[:, 4:8], blocks[:, 8:24]))
    out.mul_(half_at(blocks, 0)).add_(half_at(blocks, 2))


def decode_q8_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """code * d, codes signed."""
    out.copy_(blocks[:, 2:34].view(torch.int8))
    out.mul_(half_at(blocks, 0))


def decode_iq4_nl(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """IQ4_VALUES[code] * d."""
    codes = blocks[:, None, 2:18] >> shifts(4, 2, blocks.device) & 15
    look_up_iq4(codes, out)
    out.mul_(half_at(blocks, 0))


def look_up_iq4(codes: torch.Tensor, out: torch.Tensor) -> None:
    """Writes IQ4_VALUES[code] to `out`, which has as many elements as `codes`, in the same order."""
    table = torch.tensor(IQ4_VALUES, dtype=torch.float32, device=codes.device)
    torch.index_select(table, 0, codes.reshape(-1).int(), out=out.view(-1))


def _copy_nibbles(codes: torch.Tensor, out: torch.Tensor) -> None:
    """Bytes [B, 16] to [B, 32]: all low halves, then all high ones."""
    out[:, :16].copy_(codes & 15)
    out[:, 16:].copy_(codes >> 4)


def _five_bits(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Codes [B, 32] of which bit 4 lies in four bytes, weight after weight, and the rest in nibbles."""
    bits = high[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=high.device)
    codes = bits.bitwise_and_(1).bitwise_left_shift_(4).view(-1, 32)
    codes[:, :16].bitwise_or_(low & 15)
    codes[:, 16:].bitwise_or_(low >> 4)
    return codes
