"""Chooses the backend of prefix attention for a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from strata.kernels.prefix_attention.blocked import attend_blocked
from strata.kernels.prefix_attention.sdpa import attend_sdpa
from strata.kernels.prefix_attention.tile import Tile

TILE_ROWS = {"cpu": 128, "cuda": 2048}
"""Query rows a tile: on CPU a tile's scores should stay in cache; on CUDA the kernel blocks by itself."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tiles: Sequence[Tile],
    scaling: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """Prefix attention [T, N, H] of query [N, T, H] over key and value [K, C, H]; see `attend_blocked`."""
    if query.device.type == "cpu" or softcap is not None:
        return attend_blocked(query, key, value, tiles, scaling, softcap)
    return attend_sdpa(query, key, value, tiles, scaling)
