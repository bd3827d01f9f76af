"""Prefix attention through torch's scaled_dot_product_attention, a tile at a time: what CUDA falls back on.

The query heads that share a kv head are the head axis, of stride 0 for keys and values, so that these are not
copied; `enable_gqa=True` would force the slow MATH backend on sm75. SDPA knows causal attention of as many
rows as keys; any other tile with keys that not every row sees has a mask, as MATH, which is what float64 and
bfloat16 on a T4 come to, would make itself. cuDNN is never taken: it makes a plan for each new pair of
lengths, and lengths are seldom the same. Knows no soft cap, which SDPA does not offer.
Legend: K kv heads, G query heads a kv head, R rows of a tile, J its keys, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from strata.kernels.prefix_attention.backend import (
    AttentionRequest,
    AttentionSettings,
    TileSize,
)
from strata.kernels.prefix_attention.tile import Tile, TileCut, gather_keys


class SdpaBackend:
    """A call of SDPA a tile; gradients come from autograd."""

    name: ClassVar[str] = "sdpa"
    cut: ClassVar[TileCut] = TileCut(max_rows=2048, joins=False)

    def takes(self, request: AttentionRequest) -> bool:
        """Anything without a soft cap off the CPU, where it is right but slow.

        On the meta device autograd would keep what no device's kernels do, so gradients need a real one.
        """
        if request.has_softcap or request.device_type == "cpu":
            return False
        return request.device_type == "cuda" or not request.needs_gradients

    def scratch_bytes(self, size: TileSize, request: AttentionRequest) -> int:
        """Gathered keys and values, and a mask of two bytes an element.

        With gradients, autograd keeps these of every tile until the backward pass.
        """
        gathered = 2 * size.num_kv_heads * size.keys * size.head_dim * size.itemsize
        return gathered + 2 * size.rows * size.keys

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tiles: Sequence[Tile],
        settings: AttentionSettings,
    ) -> torch.Tensor:
        """Attention [T, N, H] of query [N, T, H] over the key space [K, C, H]; see `Backend.attend`."""
        num_heads, num_rows, head_dim = query.shape
        output = query.new_empty(num_rows, num_heads, head_dim)
        for tile in tiles:
            output[slice(*tile.rows)] = attend_tile(query, keys, values, tile, settings)
        return output


def attend_tile(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tile: Tile,
    settings: AttentionSettings,
) -> torch.Tensor:
    """Attention [R, N, H] of a tile's rows of query [N, T, H] over the key space [K, C, H]."""
    assert settings.softcap is None, "SDPA has no soft cap"
    if query.is_cuda:
        torch.backends.cuda.enable_cudnn_sdp(False)
    groups = query.shape[0] // keys.shape[0]
    key_KGJH, value_KGJH = (
        gather_keys(states, tile)[:, None].expand(-1, groups, -1, -1) for states in (keys, values)
    )
    is_square = tile.causal and tile.num_rows == tile.num_keys and tile.window is None
    attended_KGRH = scaled_dot_product_attention(
        query[:, slice(*tile.rows)].unflatten(0, (-1, groups)),
        key_KGJH,
        value_KGJH,
        attn_mask=None if is_square else _mask_of(tile, query.device),
        is_causal=is_square,
        scale=settings.scaling,
    )
    return attended_KGRH.flatten(0, 1).transpose(0, 1)


def _mask_of(tile: Tile, device: torch.device) -> torch.Tensor | None:
    if not tile.num_masked:
        return None
    mask = torch.ones(tile.num_rows, tile.num_keys, dtype=torch.bool, device=device)
    mask[:, tile.num_unmasked :] = tile.visible_mask(device)
    return mask
