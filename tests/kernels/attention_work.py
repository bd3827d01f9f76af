"""Random inputs of prefix attention, its tiles, and the same as a dense mask. Knows no backend.

Shapes: query [N, T, H], key and value [K, C, H], visible [T, C].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from strata.kernels.prefix_attention.backend import AttentionSettings
from strata.kernels.prefix_attention.reference import reference_attention
from strata.kernels.prefix_attention.tile import Tile

KINDS = ("causal", "open", "masked")
NUM_KEYS = 203


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin return NaN: what a backend forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Random inputs of one call, its tiles, and the same as a dense mask."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    tiles: tuple[Tile, ...]
    visible: torch.Tensor

    @property
    def scaling(self) -> float:
        """Not the usual 1 / sqrt(H), which is what a backend that forgets the factor would take."""
        return 1.2 * self.query.shape[-1] ** -0.5

    def settings(self, softcap: float | None = None) -> AttentionSettings:
        return AttentionSettings(scaling=self.scaling, softcap=softcap)

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query, self.key, self.value

    def oracle(self, softcap: float | None = None) -> torch.Tensor:
        return reference_attention(*self.inputs, self.visible, self.settings(softcap))


def make_work(
    rows: int,
    dtype: torch.dtype,
    *,
    groups: int = 4,
    head_dim: int = 64,
    num_kv_heads: int = 2,
    spread: float = 1.0,
    seed: int = 0,
) -> Work:
    """Tiles of 50 rows of all kinds in turn; `spread` is the standard deviation of the scores."""
    generator = torch.Generator().manual_seed(seed)
    tiles, visible = make_tiles(rows, np.random.default_rng(seed))
    query, key, value = (
        torch.randn(heads, length, head_dim, generator=generator, dtype=torch.float64)
        for heads, length in (
            (groups * num_kv_heads, rows),
            (num_kv_heads, NUM_KEYS),
            (num_kv_heads, NUM_KEYS),
        )
    )
    return Work(
        query=(query * spread).to(dtype),
        key=key.to(dtype),
        value=value.to(dtype),
        tiles=tiles,
        visible=visible,
    )


def make_tiles(rows: int, rng: np.random.Generator, size: int = 50) -> tuple[tuple[Tile, ...], torch.Tensor]:
    """Tiles over all rows, and the dense mask [rows, NUM_KEYS] that they stand for."""
    tiles, dense = [], np.zeros((rows, NUM_KEYS), bool)
    for number, start in enumerate(range(0, rows, size)):
        end = min(rows, start + size)
        tile, visible = make_tile(KINDS[number % 3], start, end, rng)
        keys = [key for first, last in tile.key_ranges for key in range(first, last)]
        dense[np.ix_(range(start, end), keys)] = visible
        tiles.append(tile)
    return tuple(tiles), torch.from_numpy(dense)


def make_tile(kind: str, start: int, end: int, rng: np.random.Generator) -> tuple[Tile, np.ndarray]:
    """A tile whose keys lie in three ranges out of order, and what its rows see of them."""
    rows, num_unmasked = end - start, 37
    num_masked = {"causal": rows, "open": 0, "masked": 29}[kind]
    first = int(rng.integers(100, NUM_KEYS - num_masked))
    ranges = ((60, 90), (11, 18), (first, first + num_masked))
    visible = np.ones((rows, num_unmasked + num_masked), bool)
    if kind == "causal":
        visible[:, num_unmasked:] = np.tri(rows, dtype=bool)
    if kind == "masked":
        visible[:, num_unmasked:] = rng.random((rows, num_masked)) < 0.5
    tile = Tile(
        rows=(start, end),
        key_ranges=ranges if num_masked else ranges[:2],
        num_keys=num_unmasked + num_masked,
        num_unmasked=num_unmasked,
        causal=kind == "causal",
        visible=np.packbits(visible[:, num_unmasked:], axis=-1) if kind == "masked" else None,
    )
    return tile, visible
