"""Prefix attention through torch's FlashAttention for CPUs: the way in bfloat16 where AMX is.

torch knows causal attention from the top left alone, of as many rows as keys. So a sequence (see tile.py)
with few keys before its rows gets rows of zeros in their place, whose results are dropped. One with many is
attended in two parts, what is before its rows and the rows themselves, which the log-sum-exps of both weigh:
    out = out_before + (out_own - out_before) * sigmoid(lse_own - lse_before)
The first part needs no mask, so the heads that share a kv head are folded into the rows, and so are the rows
of all branches under one path: what they share is read once. Short branches under few keys share a tile with
a mask, and many such tiles a call (see `padded`): a call takes as long as the scores of dozens of tokens.
Legend: T query rows, N query heads, K kv heads, G = N / K, C key space, H head dim; of the branches under one
path, B branches, S rows of all, R rows of the longest.
Source: Dao et al. 2022, FlashAttention; merging two parts: Rabe & Staats 2021, Self-attention does not need
O(n^2) memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from strata.kernels.prefix_attention.backend import (
    AttentionRequest,
    AttentionSettings,
    TileSize,
)
from strata.kernels.prefix_attention.padded import WASTE, PaddedTiles, attend_padded, pad_tiles
from strata.kernels.prefix_attention.tile import Ranges, Tile, TileCut, made_once

ADDED_ROWS = 64
"""Rows of zeros are added if that costs each row no more scores than this: what merging two parts costs."""

JOINED_KEYS = 512
"""Short branches under more keys than this share what is before them instead of a mask."""


class FlashOnCpu:
    """A call of torch's flash attention a long sequence, two for all short branches under one path."""

    name: ClassVar[str] = "flash-cpu"
    cut: ClassVar[TileCut] = TileCut(
        max_rows=None, joins=True, joined_rows=128, joined_keys=JOINED_KEYS, tile_scores=4096
    )

    def takes(self, request: AttentionRequest) -> bool:
        """bfloat16 on CPUs with AMX; elsewhere `blocked` is faster."""
        is_plain = not (request.has_softcap or request.has_window or request.needs_gradients)
        is_fast = request.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
        return request.device_type == "cpu" and is_plain and is_fast

    def scratch_bytes(self, size: TileSize, request: AttentionRequest) -> int:
        """Keys and values as the kernel packs them for each head, and both parts of the result."""
        packed = 2 * (size.num_heads + size.num_kv_heads) * size.keys * size.head_dim * size.itemsize
        results = size.num_heads * size.rows * size.head_dim * (3 * size.itemsize + 8)
        masked_keys = min(size.keys, JOINED_KEYS)
        masks = WASTE * size.num_heads // size.num_kv_heads * size.rows * masked_keys * 2 * size.itemsize
        return packed + results + int(masks)

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tiles: Sequence[Tile],
        settings: AttentionSettings,
    ) -> torch.Tensor:
        """Attention [T, N, H] of query [N, T, H] over the key space [K, C, H]; see `Backend.attend`."""
        assert settings.softcap is None, "torch's flash attention has no soft cap"
        plan = made_once(tiles, self.name, lambda: _plan_calls(tiles))
        output_TNH = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        for padded in plan.padded:
            attend_padded(query, keys, values, padded, settings.scaling, out=output_TNH)
        for branches in plan.sequences:
            rows = slice(branches[0].rows[0], branches[-1].rows[1])
            (first, *rest), num_before = branches, branches[0].num_before
            if not rest and num_before**2 <= ADDED_ROWS * first.num_rows:
                output_TNH[rows] = _attend_whole(query, keys, values, first, settings.scaling)
            else:
                output_TNH[rows] = _attend_parts(query, keys, values, branches, settings.scaling)
        return output_TNH


@dataclass(frozen=True, kw_only=True, eq=False)
class _Calls:
    """How some tiles are computed: sequences, those under one path together, and padded tiles with masks."""

    sequences: tuple[tuple[Tile, ...], ...]
    padded: tuple[PaddedTiles, ...]


def _plan_calls(tiles: Sequence[Tile]) -> _Calls:
    plain = [tile for tile in tiles if tile.is_sequence and tile.window is None]
    masked = [tile for tile in tiles if not (tile.is_sequence and tile.window is None)]
    sequences = tuple(tuple(branches) for branches in _under_one_path(plain))
    return _Calls(sequences=sequences, padded=pad_tiles(masked))


def _under_one_path(tiles: Sequence[Tile]) -> Iterator[list[Tile]]:
    """Tiles that follow one another under the same keys, and are not padded to more than twice their rows."""
    group: list[Tile] = []
    for tile in tiles:
        if group:
            longest = max(tile.num_rows, *(each.num_rows for each in group))
            num_rows = sum(each.num_rows for each in group) + tile.num_rows
            is_even = (len(group) + 1) * longest <= 2 * num_rows
            follows = group[-1].rows[1] == tile.rows[0] and group[0].ranges_before == tile.ranges_before
            if not (follows and is_even):
                yield group
                group = []
        group.append(tile)
    if group:
        yield group


def _gather(states: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    parts = [states[:, start:end] for start, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend_whole(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tile: Tile, scaling: float
) -> torch.Tensor:
    """[R, N, H] of a tile, with a row of zeros for each key before its rows."""
    num_before = tile.num_before
    query_KGCH = query[:, slice(*tile.rows)].unflatten(0, (keys.shape[0], -1))
    if num_before:
        query_KGCH = torch.nn.functional.pad(query_KGCH, (0, 0, num_before, 0))
    groups = query_KGCH.shape[1]
    key, value = (
        _gather(states, tile.key_ranges)[:, None].expand(-1, groups, -1, -1) for states in (keys, values)
    )
    attended, _ = _flash(query_KGCH, key, value, scaling, is_causal=True)
    return attended[:, :, num_before:].flatten(0, 1).transpose(0, 1)


def _attend_parts(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tiles: Sequence[Tile], scaling: float
) -> torch.Tensor:
    """[S, N, H] of branches under one path: what they share, and then each branch's own rows."""
    before = tiles[0].ranges_before
    own_SNH, own_lse_SN = _attend_own(query, keys, values, tiles, scaling)
    if not before:
        return own_SNH
    rows = slice(tiles[0].rows[0], tiles[-1].rows[1])
    folded = query[:, rows].unflatten(0, (keys.shape[0], -1)).flatten(1, 2)
    shared, lse = _flash(
        folded[None], _gather(keys, before)[None], _gather(values, before)[None], scaling, is_causal=False
    )
    shape = (query.shape[0], rows.stop - rows.start)
    shared_SNH, lse_SN = shared.reshape(*shape, -1).transpose(0, 1), lse.reshape(shape).T
    weight = torch.sigmoid(own_lse_SN - lse_SN)[..., None].to(torch.promote_types(query.dtype, torch.float32))
    return torch.lerp(shared_SNH.to(weight.dtype), own_SNH.to(weight.dtype), weight)


def _attend_own(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tiles: Sequence[Tile], scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[S, N, H] and log-sum-exps [S, N] of each branch's rows over themselves, all branches in one call.

    Shorter branches are padded behind their last row, which no row before sees.
    """
    num_kv_heads = keys.shape[0]
    own = [tile.own_ranges for tile in tiles]
    query_BRNH = pad_sequence(
        [query[:, slice(*tile.rows)].transpose(0, 1) for tile in tiles], batch_first=True
    )
    padded = [
        pad_sequence([_gather(states, ranges).transpose(0, 1) for ranges in own], batch_first=True)
        for states in (keys, values)
    ]
    query_BKGRH = query_BRNH.unflatten(2, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4)
    groups = query_BKGRH.shape[2]
    key, value = (
        states.transpose(1, 2).flatten(0, 1)[:, None].expand(-1, groups, -1, -1) for states in padded
    )
    attended, lse = _flash(query_BKGRH.flatten(0, 1), key, value, scaling, is_causal=True)
    attended_BRNH = attended.unflatten(0, (-1, num_kv_heads)).flatten(1, 2).transpose(1, 2)
    lse_BRN = lse.unflatten(0, (-1, num_kv_heads)).flatten(1, 2).transpose(1, 2)
    parts = [(attended_BRNH[n, : t.num_rows], lse_BRN[n, : t.num_rows]) for n, t in enumerate(tiles)]
    return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attended [batch, heads, rows, H] and log-sum-exp [batch, heads, rows]."""
    attended, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, scale=scaling
    )
    return attended, lse
