"""What the hand-written layouts are made of: integers in words, drawn codes and scales, their spreading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Packed = tuple[dict[str, Tensor], Tensor]
"""Stored tensors by their suffix after the module's name, and the float32 weight [N, K] that they mean."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A format as a test case: `pack(shape, generator)` and the config's account of it."""

    settings: dict
    pack: Callable[[tuple[int, int], torch.Generator], Packed]


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """int32 words of unsigned codes [A, L] along the last axis, the first code in the lowest bits."""
    rows = []
    for row in codes.tolist():
        row += [0] * (-len(row) % (32 // bits))
        words = [row[start : start + 32 // bits] for start in range(0, len(row), 32 // bits)]
        rows.append([sum(code << bits * place for place, code in enumerate(word)) for word in words])
    return torch.tensor([[word - (word >> 31 << 32) for word in row] for row in rows], dtype=torch.int32)


def draw(generator: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    """Integers in [low, high)."""
    return torch.randint(low, high, shape, generator=generator)


def draw_scales(generator: torch.Generator, bits: int, *shape: int) -> Tensor:
    """float32 scales that fill 6 bits, such that codes times scales have a size of some tenths."""
    return draw(generator, 32, 64, *shape).float() * 2.0 ** (-4 - bits)


def spread_groups(values: Tensor, group_of_input: Tensor) -> Tensor:
    """[N, G] -> [N, K]."""
    return torch.stack([values[:, group] for group in group_of_input.tolist()], dim=1)


def float_codes(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """float8_e4m3fn numbers of a size of some units."""
    return (4 * torch.randn(shape, generator=generator)).to(torch.float8_e4m3fn)


def spread_blocks(scales: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """A scale for each weight, of those a block."""
    return torch.tensor(
        [
            [scales[row // block[0], column // block[1]] for column in range(shape[1])]
            for row in range(shape[0])
        ]
    )
