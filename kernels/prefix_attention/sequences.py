"""Tiles as calls of a variable-length kernel: sequences of rows and keys one behind another, without masks.

A sequence's rows are the last of its keys, so that "causal from the bottom right" is what each row sees. Keys
that several sequences see are in each of them, gathered by an index that stays on the device, except where
siblings follow one another under a long path and the kernel tells log-sum-exps: then their own keys are one
part, and what is above them all is another, gathered once, seen by all their rows without a mask, and merged
(`SequenceCall.shared`). A call gathers no more than `GATHERED_KEYS` unless one sequence has more.
Knows no kernel. Shapes: T rows of a call, R of them, K kv heads, C key space, J gathered keys, H head dim, S
sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch

from strata.kernels.prefix_attention.parts import gather_keys
from strata.kernels.prefix_attention.tile import Ranges, Tile, made_once

GATHERED_KEYS = 65_536

SHARED_KEYS = 128
"""Siblings under fewer keys than these, a kernel's block, have them gathered for each."""


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
        shared: what is above siblings among these sequences, which have but their own keys here.
    """

    rows: tuple[int, int]
    key_range: tuple[int, int] | None
    gather: torch.Tensor | None
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    window: int | None = None
    shared: SharedKeys | None = None

    @property
    def num_keys(self) -> int:
        """J."""
        if self.key_range is not None:
            return self.key_range[1] - self.key_range[0]
        assert self.gather is not None
        return len(self.gather)

    def gathered(self, states: torch.Tensor) -> torch.Tensor:
        """The call's part [K, J, H] of keys or values [K, C, H]."""
        if self.key_range is not None:
            return states[:, slice(*self.key_range)]
        assert self.gather is not None
        return gather_keys(states, self.gather)


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedKeys:
    """A call without a mask: a sequence is the rows of siblings, and the keys above them.

    Attributes:
        call: of these rows, one behind another.
        query_rows: [R] int64 on the device, which rows of the call with the siblings' own keys these are.
    """

    call: SequenceCall
    query_rows: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SequencePlan:
    """All tiles of a micro-batch: `calls` for the sequences, and the `others`, which have masks."""

    calls: tuple[SequenceCall, ...]
    others: tuple[Tile, ...]


def plan_sequences(
    tiles: Sequence[Tile], device: torch.device, *, windows: bool = True, shares: bool = False
) -> SequencePlan:
    """The calls that compute some tiles; of `PlannedTiles` built once a device.

    Args:
        tiles: any.
        device: where indexes are put.
        windows: whether the kernel knows sliding windows; else windowed tiles are among the others.
        shares: whether the kernel tells log-sum-exps, so that siblings can share what is above them.
    """

    def build() -> SequencePlan:
        is_taken = [tile.is_sequence and (windows or tile.window is None) for tile in tiles]
        sequences = [tile for tile, taken in zip(tiles, is_taken, strict=True) if taken]
        others = tuple(tile for tile, taken in zip(tiles, is_taken, strict=True) if not taken)
        calls = _group(_siblings(sequences) if shares else ([tile] for tile in sequences))
        return SequencePlan(calls=tuple(_build_call(call, device) for call in calls), others=others)

    return made_once(tiles, f"sequences on {device}, windows {windows}, shares {shares}", build)


Family = list[Tile]
"""Siblings under one path, or a tile alone."""


def _siblings(tiles: Sequence[Tile]) -> Iterator[Family]:
    """Tiles that follow one another under the same many keys, together."""
    family: Family = []
    for tile in tiles:
        if family and not (
            family[-1].rows[1] == tile.rows[0]
            and family[0].window is None is tile.window
            and tile.num_before >= SHARED_KEYS
            and family[0].ranges_before == tile.ranges_before
        ):
            yield family
            family = []
        family.append(tile)
    if family:
        yield family


def _group(families: Iterable[Family]) -> list[list[Family]]:
    """Families of one call each: rows without a gap, one window, and not too many keys."""
    groups: list[list[Family]] = []
    keys = 0
    for family in families:
        first, last = family[0], groups[-1][-1][-1] if groups else None
        follows = last is not None and last.rows[1] == first.rows[0] and last.window == first.window
        num_keys = first.num_before + sum(tile.num_rows for tile in family)
        keys += num_keys
        if not follows or keys > GATHERED_KEYS:
            groups.append([])
            keys = num_keys
        groups[-1].append(family)
    return groups


def _build_call(families: Sequence[Family], device: torch.device) -> SequenceCall:
    tiles = list(chain.from_iterable(families))
    together = [family for family in families if len(family) > 1]
    sequences = [
        (tile.num_rows, tile.key_ranges if len(family) == 1 else tile.own_ranges)
        for family in families
        for tile in family
    ]
    rows = (tiles[0].rows[0], tiles[-1].rows[1])
    shared = _share(together, rows[0], device) if together else None
    return _call(rows, sequences, device, window=tiles[0].window, shared=shared)


def _share(families: Sequence[Family], first_row: int, device: torch.device) -> SharedKeys:
    spans = [(family[0].rows[0] - first_row, family[-1].rows[1] - first_row) for family in families]
    num_rows = sum(end - start for start, end in spans)
    sequences = [
        (end - start, family[0].ranges_before) for (start, end), family in zip(spans, families, strict=True)
    ]
    return SharedKeys(call=_call((0, num_rows), sequences, device), query_rows=_indexes(spans, device))


def _call(
    rows: tuple[int, int],
    sequences: Sequence[tuple[int, Ranges]],
    device: torch.device,
    window: int | None = None,
    shared: SharedKeys | None = None,
) -> SequenceCall:
    """A call of sequences by their number of rows and their keys."""
    ranges = _joined(chain.from_iterable(keys for _, keys in sequences))
    num_keys = [sum(end - start for start, end in keys) for _, keys in sequences]
    num_rows = [rows for rows, _ in sequences]
    return SequenceCall(
        rows=rows,
        key_range=ranges[0] if len(ranges) == 1 else None,
        gather=_indexes(ranges, device) if len(ranges) > 1 else None,
        cu_seqlens_q=_cumulated(num_rows, device),
        cu_seqlens_k=_cumulated(num_keys, device),
        max_seqlen_q=max(num_rows),
        max_seqlen_k=max(num_keys),
        window=window,
        shared=shared,
    )


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same keys in the same order, in as few ranges as can be."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _indexes(ranges: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.arange(*one) for one in ranges])).to(device)


def _cumulated(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
