"""What a backend of prefix attention is: what it takes, how it wants its tiles, and what one of them costs.

Knows no backend: those are listed in registry.py, each in a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from strata.kernels.prefix_attention.tile import Tile, TileCut

CPU_CUT = TileCut(max_rows=128, joins=True)
"""Tiles whose scores should stay in a core's cache."""

CUDA_CUT = TileCut(max_rows=512, joins=True)
"""Tiles that fill a device, and are too short for a long prefix to share one with its branches."""

SEQUENCE_CUT = TileCut(max_rows=None, joins=False)
"""Whole sequences, for kernels that block by themselves."""


@dataclass(frozen=True, kw_only=True)
class AttentionRequest:
    """What is asked of attention before there are any tensors.

    Attributes:
        device_type: "cpu", "cuda", or "meta" for shapes alone.
        has_softcap: the family caps its scores (Gemma 2).
        has_window: a sliding window hides what is further up.
        needs_gradients: a backward pass will follow.
        dtype: of keys and values, None for not known.
        head_dim: of queries, keys and values, None for not known.
        capability: CUDA compute capability, None where there is none or it is not known.
    """

    device_type: str
    has_softcap: bool = False
    has_window: bool = False
    needs_gradients: bool = False
    dtype: torch.dtype | None = None
    head_dim: int | None = None
    capability: tuple[int, int] | None = None


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
    num_kv_heads: int
    head_dim: int
    itemsize: int


class Backend(Protocol):
    """A way to compute prefix attention."""

    @property
    def name(self) -> str:
        """What errors and reports call it."""

    @property
    def cut(self) -> TileCut:
        """How rows should be cut into tiles."""

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
            tiles: the work, cut as `cut` asks; other tiles are right too, if slower.
            settings: scaling and soft cap.

        Returns:
            [T, N, H] in the query's dtype.
        """
