"""Prefix attention through torch's scaled_dot_product_attention: the way on CUDA, T4 included.

K and V are expanded to the query heads, because `enable_gqa=True` forces the slow MATH backend on sm75. A
dense mask is passed only where a tile has masked keys and is not plainly causal; its last dimension is padded
to a multiple of 8, which the memory-efficient backend needs. Knows no soft cap, which SDPA does not offer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from strata.kernels.prefix_attention.backend import (
    CUDA_TILE_ROWS,
    AttentionRequest,
    AttentionSettings,
    TileSize,
)
from strata.kernels.prefix_attention.tile import Tile, gather_keys


class SdpaBackend:
    """A call of SDPA a tile; gradients come from autograd."""

    name: ClassVar[str] = "sdpa"
    tile_rows: ClassVar[int] = CUDA_TILE_ROWS

    def takes(self, request: AttentionRequest) -> bool:
        """Anything without a soft cap off the CPU, where it is right but slow.

        On the meta device autograd would keep what no device's kernels do, so gradients need a real one.
        """
        if request.has_softcap or request.device_type == "cpu":
            return False
        return request.device_type == "cuda" or not request.needs_gradients

    def scratch_bytes(self, size: TileSize, request: AttentionRequest) -> int:
        """Expanded keys and values, and a mask of two bytes an element.

        With gradients, autograd keeps these of every tile until the backward pass.
        """
        return 2 * size.num_heads * size.keys * size.head_dim * size.itemsize + 2 * size.rows * size.keys

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tiles: Sequence[Tile],
        settings: AttentionSettings,
    ) -> torch.Tensor:
        """Attention [T, N, H] of query [N, T, H] over the key space [K, C, H]; see `Backend.attend`."""
        assert settings.softcap is None, "SDPA has no soft cap"
        num_heads, num_rows, head_dim = query.shape
        groups = num_heads // keys.shape[0]
        output = query.new_empty(num_rows, num_heads, head_dim)
        for tile in tiles:
            start, end = tile.rows
            is_causal = tile.causal and tile.num_unmasked == 0
            attended = scaled_dot_product_attention(
                query[None, :, start:end],
                gather_keys(keys, tile).repeat_interleave(groups, dim=0)[None],
                gather_keys(values, tile).repeat_interleave(groups, dim=0)[None],
                attn_mask=None if is_causal or not tile.num_masked else _dense_mask(tile, query.device),
                is_causal=is_causal,
                scale=settings.scaling,
            )
            output[start:end] = attended[0].transpose(0, 1)
        return output


def _dense_mask(tile: Tile, device: torch.device) -> torch.Tensor:
    padded = -(-tile.num_keys // 8) * 8
    mask = torch.ones(tile.num_rows, padded, dtype=torch.bool, device=device)[:, : tile.num_keys]
    mask[:, tile.num_unmasked :] = tile.visible_mask(device)
    return mask
