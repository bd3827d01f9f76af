"""What a backend of prefix attention is: what it takes, how it wants its tiles, and what one of them costs.

Knows no backend: those are listed in registry.py, each in a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from strata.kernels.prefix_attention.tile import Tile

CPU_TILE_ROWS = 128
"""Query rows a tile whose scores should stay in a core's cache."""

CUDA_TILE_ROWS = 2048
"""Query rows a tile where the device blocks by itself, or is only filled by large products."""


@dataclass(frozen=True, kw_only=True)
class AttentionRequest:
    """What is asked of attention before there are any tensors.

    Attributes:
        device_type: "cpu", "cuda", or "meta" for shapes alone.
        has_softcap: the family caps its scores (Gemma 2).
        needs_gradients: a backward pass will follow.
    """

    device_type: str
    has_softcap: bool = False
    needs_gradients: bool = False


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """What a layer's scores are made with.

    Attributes:
        scaling: factor on q k^T.
        softcap: scores become softcap * tanh(scores / softcap); None for no cap.
    """

    scaling: float
    softcap: float | None = None


@dataclass(frozen=True, kw_only=True)
class TileSize:
    """A tile's size: `rows` query rows of `num_heads` heads over `keys` keys, `itemsize` bytes an element."""

    rows: int
    keys: int
    num_heads: int
    head_dim: int
    itemsize: int


class Backend(Protocol):
    """A way to compute prefix attention."""

    @property
    def name(self) -> str:
        """What errors and reports call it."""

    @property
    def tile_rows(self) -> int:
        """The most query rows that a tile should have."""

    def takes(self, request: AttentionRequest) -> bool:
        """Whether it can compute what is asked."""

    def scratch_bytes(self, size: TileSize, request: AttentionRequest) -> int:
        """Peak bytes beside inputs and output while one tile is computed, for a request that it takes."""

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tiles: Sequence[Tile],
        settings: AttentionSettings,
    ) -> torch.Tensor:
        """Attention of every row over its tile's keys.

        Args:
            query: [N, T, H]; every row must be in exactly one tile.
            keys: [K, C, H], the key space; N a multiple of K.
            values: [K, C, H].
            tiles: the work; the planner cuts tiles of at most `tile_rows` rows, but any size is right.
            settings: scaling and soft cap.

        Returns:
            [T, N, H] in the query's dtype.
        """
