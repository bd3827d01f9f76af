"""Tiles as calls of a variable-length kernel: sequences of rows and keys one behind another, without masks.

A sequence's rows are the last of its keys, so that "causal from the bottom right" is what each row sees. Keys
that several sequences see are in each of them, gathered by an index that stays on the device: gathering costs
little beside attending, except where sequences are far shorter than what is above them, so a call gathers no
more than `GATHERED_KEYS` unless one sequence has more.
Knows no kernel. Shapes: K kv heads, C key space, J gathered keys, H head dim, S sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from strata.kernels.prefix_attention.tile import Tile, made_once

GATHERED_KEYS = 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceCall:
    """One call: rows that follow one another, and what they see.

    Attributes:
        rows: (start, end) of query rows.
        key_range: (start, end) of the key space where the gathered keys are just that, else None.
        gather: [J] int64, indexes into the key space, on the device; None where `key_range` is given.
        cu_seqlens_q: [S + 1] int32 on the device, where each sequence's rows begin, from 0.
        cu_seqlens_k: [S + 1] int32 on the device, where its keys begin among the gathered ones.
        max_seqlen_q: rows of the longest sequence.
        max_seqlen_k: keys of the longest sequence.
        window: how many keys a row sees at most, None for all.
    """

    rows: tuple[int, int]
    key_range: tuple[int, int] | None
    gather: torch.Tensor | None
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    window: int | None

    def gathered(self, states: torch.Tensor) -> torch.Tensor:
        """The call's part [K, J, H] of keys or values [K, C, H]."""
        if self.key_range is not None:
            return states[:, slice(*self.key_range)]
        assert self.gather is not None
        return states.index_select(1, self.gather)


@dataclass(frozen=True, kw_only=True, eq=False)
class SequencePlan:
    """All tiles of a micro-batch: `calls` for the sequences, and the `others`, which have masks."""

    calls: tuple[SequenceCall, ...]
    others: tuple[Tile, ...]


def plan_sequences(tiles: Sequence[Tile], device: torch.device, *, windows: bool = True) -> SequencePlan:
    """The calls that compute some tiles; of `PlannedTiles` built once a device.

    Args:
        tiles: any.
        device: where indexes are put.
        windows: whether the kernel knows sliding windows; else windowed tiles are among the others.
    """

    def build() -> SequencePlan:
        is_taken = [tile.is_sequence and (windows or tile.window is None) for tile in tiles]
        calls = _group(tile for tile, taken in zip(tiles, is_taken, strict=True) if taken)
        others = tuple(tile for tile, taken in zip(tiles, is_taken, strict=True) if not taken)
        return SequencePlan(calls=tuple(_build_call(call, device) for call in calls), others=others)

    return made_once(tiles, f"sequences on {device}, windows {windows}", build)


def _group(tiles: Iterable[Tile]) -> list[list[Tile]]:
    """Tiles of one call each: rows without a gap, one window, and not too many keys."""
    groups: list[list[Tile]] = []
    keys = 0
    for tile in tiles:
        last = groups[-1][-1] if groups else None
        follows = last is not None and last.rows[1] == tile.rows[0] and last.window == tile.window
        keys += tile.num_keys
        if not follows or keys > GATHERED_KEYS:
            groups.append([])
            keys = tile.num_keys
        groups[-1].append(tile)
    return groups


def _build_call(tiles: Sequence[Tile], device: torch.device) -> SequenceCall:
    ranges = [key_range for tile in tiles for key_range in tile.key_ranges]
    gather = None
    if len(ranges) > 1:
        gather = torch.from_numpy(np.concatenate([np.arange(*key_range) for key_range in ranges])).to(device)
    return SequenceCall(
        rows=(tiles[0].rows[0], tiles[-1].rows[1]),
        key_range=ranges[0] if gather is None else None,
        gather=gather,
        cu_seqlens_q=_cumulated([tile.num_rows for tile in tiles], device),
        cu_seqlens_k=_cumulated([tile.num_keys for tile in tiles], device),
        max_seqlen_q=max(tile.num_rows for tile in tiles),
        max_seqlen_k=max(tile.num_keys for tile in tiles),
        window=tiles[0].window,
    )


def _cumulated(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
