"""Prefix attention through torch's scaled_dot_product_attention: the way on CUDA, T4 included.

K and V are expanded to the query heads, because `enable_gqa=True` forces the slow MATH backend on sm75. A
dense mask is passed only where a tile has masked keys and is not plainly causal; its last dimension is padded
to a multiple of 8, which the memory-efficient backend needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from strata.kernels.prefix_attention.tile import Tile, gather_keys


def attend_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tiles: Sequence[Tile], scaling: float
) -> torch.Tensor:
    """As `attend_blocked`, without soft-capping, which SDPA does not offer. Returns [T, N, H]."""
    num_heads, num_rows, head_dim = query.shape
    groups = num_heads // key.shape[0]
    output = query.new_empty(num_rows, num_heads, head_dim)
    for tile in tiles:
        start, end = tile.rows
        is_causal = tile.causal and tile.num_unmasked == 0
        attended = scaled_dot_product_attention(
            query[None, :, start:end],
            gather_keys(key, tile).repeat_interleave(groups, dim=0)[None],
            gather_keys(value, tile).repeat_interleave(groups, dim=0)[None],
            attn_mask=None if is_causal or not tile.num_masked else _dense_mask(tile, query.device),
            is_causal=is_causal,
            scale=scaling,
        )
        output[start:end] = attended[0].transpose(0, 1)
    return output


def _dense_mask(tile: Tile, device: torch.device) -> torch.Tensor:
    padded = -(-tile.num_keys // 8) * 8
    mask = torch.ones(tile.num_rows, padded, dtype=torch.bool, device=device)[:, : tile.num_keys]
    mask[:, tile.num_unmasked :] = tile.visible_mask(device)
    return mask
