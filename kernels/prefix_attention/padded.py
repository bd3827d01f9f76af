"""Tiles with masks in few calls of torch's FlashAttention for CPUs: padded to one size, a batch of them each.

A short tile costs more in calls than in scores. So tiles of about equal size become one call:
    query [B, K, G * R, H], keys and values [B, K, C, H], mask [B, 1, G * R, C]
where R and C are the most rows and keys of a tile. The query heads that share a kv head are folded into the
rows. Added rows see everything and are dropped; added keys are seen by no row that is kept. Which rows and
keys go where, and the mask in bits, is worked out once and kept with the tiles.
Legend: B tiles, T query rows, N query heads, K kv heads, G = N / K, C keys, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn import functional

from strata.kernels.prefix_attention.tile import Tile

WASTE = 1.5
"""A call may compute this many times the scores that its tiles have."""

CALL_SCORES = 4096
"""Scores of a head that take about as long as a call more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedTiles:
    """Tiles that are computed in one call.

    Attributes:
        num_rows: R, rows of each, added ones included.
        num_keys: C, keys of each, added ones included: a multiple of 8.
        rows: [B * R] query row of each; added ones repeat one.
        keys: [B * C] key of each; added ones repeat one of the tile's.
        kept: places in [B * R] of the rows that are not added, None where none is.
        kept_rows: the query rows at these places.
        visible: int32 [B, R, C / 8], which row sees which key: a bit a key, the first the highest of eight.
    """

    num_rows: int
    num_keys: int
    rows: torch.Tensor
    keys: torch.Tensor
    kept: torch.Tensor | None
    kept_rows: torch.Tensor
    visible: torch.Tensor

    @property
    def num_tiles(self) -> int:
        """B."""
        return len(self.visible)

    def additive_mask(self, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """[B, 1, G * R, C]: 0 where the row sees the key, minus infinity elsewhere."""
        mask_BRC = functional.embedding(self.visible, _eight_at_once(dtype)).flatten(-2)
        return mask_BRC[:, None].expand(-1, groups, -1, -1).flatten(1, 2)[:, None]


@cache
def _eight_at_once(dtype: torch.dtype) -> torch.Tensor:
    """[256, 8]: what eight keys get whose bits make a byte."""
    is_seen = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=-1)
    return torch.zeros(256, 8, dtype=dtype).masked_fill_(torch.from_numpy(is_seen == 0), float("-inf"))


def pad_tiles(tiles: Sequence[Tile]) -> tuple[PaddedTiles, ...]:
    """Tiles of about equal size together, each group padded to its largest."""
    groups: list[list[Tile]] = []
    for tile in sorted(tiles, key=lambda tile: (tile.num_keys, tile.num_rows)):
        if groups and _is_worth_padding([*groups[-1], tile]):
            groups[-1].append(tile)
        else:
            groups.append([tile])
    return tuple(_pad(group) for group in groups)


def _is_worth_padding(tiles: Sequence[Tile]) -> bool:
    largest = max(tile.num_rows for tile in tiles) * max(tile.num_keys for tile in tiles)
    scores = sum(tile.num_rows * tile.num_keys for tile in tiles)
    return len(tiles) * largest <= WASTE * scores + CALL_SCORES


def _pad(tiles: Sequence[Tile]) -> PaddedTiles:
    num_rows = max(tile.num_rows for tile in tiles)
    num_keys = -(-max(tile.num_keys for tile in tiles) // 8) * 8
    rows = np.empty((len(tiles), num_rows), np.int32)
    keys = np.empty((len(tiles), num_keys), np.int32)
    is_kept = np.zeros((len(tiles), num_rows), bool)
    visible = np.zeros((len(tiles), num_rows, num_keys), bool)
    for number, tile in enumerate(tiles):
        rows[number] = _fill(np.arange(*tile.rows), num_rows)
        keys[number] = _fill(np.concatenate([np.arange(*found) for found in tile.key_ranges]), num_keys)
        is_kept[number, : tile.num_rows] = True
        visible[number, : tile.num_rows, : tile.num_unmasked] = True
        if tile.num_masked:
            seen = tile.visible_mask(torch.device("cpu")).numpy()
            visible[number, : tile.num_rows, tile.num_unmasked : tile.num_keys] = seen
    # A row that sees nothing would divide by zero.
    visible[~is_kept] = True
    places = np.flatnonzero(is_kept)
    return PaddedTiles(
        num_rows=num_rows,
        num_keys=num_keys,
        rows=torch.from_numpy(rows).flatten(),
        keys=torch.from_numpy(keys).flatten(),
        kept=None if is_kept.all() else torch.from_numpy(places),
        kept_rows=torch.from_numpy(rows.flatten()[places]).long(),
        visible=torch.from_numpy(np.packbits(visible, axis=-1).astype(np.int32)),
    )


def _fill(places: np.ndarray, length: int) -> np.ndarray:
    """Places and then the first of them again and again: other tiles' keys may hold anything."""
    return np.concatenate([places, np.full(length - len(places), places[0])])


def attend_padded(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    padded: PaddedTiles,
    scaling: float,
    out: torch.Tensor,
) -> None:
    """Writes the rows of some tiles, in one call.

    Args:
        query: [N, T, H].
        keys: [K, C, H], the key space.
        values: [K, C, H].
        padded: the tiles.
        scaling: factor on q k^T.
        out: [T, N, H].
    """
    num_tiles, num_heads, num_kv_heads = padded.num_tiles, len(query), len(keys)
    groups = num_heads // num_kv_heads
    query_BRKGH = (
        query.transpose(0, 1)
        .index_select(0, padded.rows)
        .view(num_tiles, padded.num_rows, num_kv_heads, groups, -1)
    )
    query_BKRH = query_BRKGH.permute(0, 2, 3, 1, 4).reshape(
        num_tiles, num_kv_heads, groups * padded.num_rows, -1
    )
    key, value = (
        states.index_select(1, padded.keys).unflatten(1, (num_tiles, padded.num_keys)).transpose(0, 1)
        for states in (keys, values)
    )
    mask = padded.additive_mask(groups, query.dtype)
    attended, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_BKRH, key, value, 0.0, False, attn_mask=mask, scale=scaling
    )
    shape = (num_tiles, num_kv_heads, groups, padded.num_rows, -1)
    rows_TNH = attended.reshape(shape).permute(0, 3, 1, 2, 4).reshape(-1, num_heads, query.shape[-1])
    if padded.kept is not None:
        rows_TNH = rows_TNH.index_select(0, padded.kept)
    out.index_copy_(0, padded.kept_rows, rows_TNH)
