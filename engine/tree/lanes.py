"""Cuts the stream of a prefix tree into groups, lanes and micro-batches, without padding.

Data flow: PrefixTree -> `split_lanes` -> Lane (what one device computes in one group) -> MicroBatch (a slice
of B tokens of the lane). Keys of a micro-batch are its *key space*: first the `carried` tokens, whose keys
and values were computed before and are still attended to, then its own `rows`. Tokens that more than one lane
needs are *public*: the first lane computes them before all else and publishes their keys and values.
Independent check (tests): every stream token is computed by exactly one lane, and every key a row needs is in
the key space of its micro-batch. Knows nothing of layers or weights.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from strata.engine.tree.intervals import (
    Intervals,
    clip_stream,
    count,
    indexes,
    join_intervals,
    subtract,
    union,
)
from strata.engine.tree.prefix_tree import PrefixTree


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Rows of one micro-batch that belong to one run: stream [start, end), first at local row `row`."""

    run: int
    start: int
    end: int
    row: int


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """A slice of a lane.

    Attributes:
        rows: stream intervals computed, in order.
        carried: stream intervals that come first in the key space, taken from the key space before (or
            published).
        first_row: where the slice begins in the lane.
        num_rows: tokens computed.
        scored_rows: [S] int64 local rows whose readout is needed, ascending.
        kept: ranges of this key space that the next micro-batch carries, in its order.
    """

    rows: Intervals
    carried: Intervals
    first_row: int
    num_rows: int
    scored_rows: np.ndarray
    kept: Intervals

    @property
    def key_space(self) -> Intervals:
        """Stream intervals in key order: carried first, then own rows."""
        return self.carried + self.rows

    @property
    def num_carried(self) -> int:
        """Tokens carried."""
        return count(self.carried)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lane:
    """What one device computes in one group.

    `public` are the stream intervals whose keys and values the lane takes from, or (when `publishes`) gives
    to, the others. `scored` [S] int64 are the stream indexes whose readouts it leaves, in the order of its
    rows.
    """

    micro_batches: tuple[MicroBatch, ...]
    public: Intervals
    publishes: bool
    num_tokens: int
    scored: np.ndarray


CUT_SLACK = 0.1
"""How far from an equal share, as a part of it, a lane may begin so as to begin between questions."""
EMPTY_LANE = Lane(micro_batches=(), public=(), publishes=False, num_tokens=0, scored=np.empty(0, np.int64))


def split_lanes(
    tree: PrefixTree, scored: np.ndarray, num_lanes: int, micro_batch_tokens: int
) -> tuple[Lane, ...]:
    """Splits a tree over lanes (groups x devices, in that order) of nearly equal token counts.

    Args:
        tree: the whole job's tree.
        scored: ascending stream indexes whose readouts are needed.
        num_lanes: at most this many; fewer when there are not enough runs.
        micro_batch_tokens: tokens a micro-batch, at least 1. Of a forest, a micro-batch is a tree, of
            whatever size.
    """
    bounds = _run_bounds(tree, num_lanes) if tree.tree_starts is None else _tree_bounds(tree, num_lanes)
    public = _public_tokens(tree, bounds)
    lanes = []
    for index, (first, last) in enumerate(pairwise(bounds)):
        rows = ((int(tree.run_starts[first]), int(tree.run_starts[last])),)
        imported: Intervals = ()
        order = join_intervals(public + subtract(rows, public)) if index == 0 else subtract(rows, public)
        if index:
            imported = _needed_public(tree, first, last, public)
        lanes.append(
            _build_lane(tree, order, imported, public if index == 0 else (), scored, micro_batch_tokens)
        )
    return tuple(lanes)


def token_ids_of(tree: PrefixTree, lanes: Sequence[Lane]) -> np.ndarray:
    """[U] ascending distinct ids of the tokens that some lanes compute."""
    rows = [indexes(batch.rows) for lane in lanes for batch in lane.micro_batches]
    return np.unique(tree.token_ids[np.concatenate(rows)]) if rows else np.empty(0, np.int32)


def segments_of(tree: PrefixTree, rows: Intervals) -> list[Segment]:
    """Cuts row intervals at run boundaries."""
    segments, row = [], 0
    for start, end in rows:
        run = bisect_right(tree.run_starts, start) - 1
        while start < end:
            stop = min(end, int(tree.run_starts[run + 1]))
            segments.append(Segment(run=run, start=start, end=stop, row=row))
            row += stop - start
            start, run = stop, run + 1
    return segments


def to_key_space(intervals: Intervals, key_space: Intervals) -> Intervals:
    """Ranges of key indexes that hold the given stream intervals.

    Raises:
        AssertionError: a stream index is not in the key space.
    """
    found, offset, placed = [], 0, []
    for start, end in key_space:
        placed.append((start, end, offset))
        offset += end - start
    for start, end in intervals:
        reached = start
        for key_start, key_end, key_offset in placed:
            low, high = max(start, key_start), min(end, key_end)
            if low < high:
                found.append((low, key_offset + low - key_start, high - low))
                reached += high - low
        assert reached == end, f"stream [{start}, {end}) is not wholly in the key space"
    found.sort()
    return join_intervals(tuple((key, key + length) for _, key, length in found))


def ranges_in_order(wanted: Intervals, key_space: Intervals) -> Intervals:
    """Key ranges of each wanted stream interval, in the order of the wanted intervals."""
    ranges = [pair for interval in wanted for pair in to_key_space((interval,), key_space)]
    return join_intervals(tuple(ranges))


def _run_bounds(tree: PrefixTree, num_lanes: int) -> list[int]:
    """Runs at which lanes begin: near equal shares of the tokens, where little becomes public.

    A run that begins behind d others of its chain makes d tokens public, so a cut between questions is better
    than one inside. A public token counts as much as one by which the lane misses its share.
    """
    share = tree.num_tokens / num_lanes
    starts = tree.run_starts[:-1]
    bounds = {0, tree.num_runs}
    for lane in range(1, num_lanes):
        low, high = np.searchsorted(starts, ((lane - CUT_SLACK) * share, (lane + CUT_SLACK) * share))
        low = max(int(low), 1)
        high = min(max(int(high), low + 1), tree.num_runs)
        if low < high:
            num_public = [count(_ancestors_before(tree, run, int(starts[run]))) for run in range(low, high)]
            missed = np.abs(starts[low:high] - lane * share)
            bounds.add(low + int(np.argmin(num_public + missed)))
    return sorted(bounds)


def _tree_bounds(tree: PrefixTree, num_lanes: int) -> list[int]:
    """The same for a forest: lanes begin where trees do."""
    assert tree.tree_starts is not None
    shares = np.arange(num_lanes) * tree.num_tokens / num_lanes
    starts = np.append(tree.tree_starts, tree.num_tokens)[np.searchsorted(tree.tree_starts, shares)]
    return np.unique(np.append(np.searchsorted(tree.run_starts, starts), tree.num_runs)).tolist()


def _public_tokens(tree: PrefixTree, bounds: list[int]) -> Intervals:
    return union(*(_ancestors_before(tree, run, int(tree.run_starts[run])) for run in bounds[1:-1]))


def _ancestors_before(tree: PrefixTree, run: int, end: int) -> Intervals:
    """Ancestors of the run and of all later ones that lie before stream index `end`, the run's own start.

    Depth-first order makes the ancestors of later runs a part of this run's, siblings that it does not see
    itself included.
    """
    return clip_stream(tree.chains[run], end)


def _needed_public(tree: PrefixTree, first: int, last: int, public: Intervals) -> Intervals:
    needed = union(*(tree.paths[run] for run in range(first, last)))
    return subtract(needed, subtract(needed, public))


def _build_lane(
    tree: PrefixTree,
    order: Intervals,
    imported: Intervals,
    published: Intervals,
    scored: np.ndarray,
    size: int,
) -> Lane:
    slices = _slice_rows(order, size) if tree.tree_starts is None else _slice_trees(tree, order)
    needed_later = _needed_from_each(tree, slices)
    batches, first_row, lane_scored = [], 0, []
    for index, rows in enumerate(slices):
        carried = needed_later[index] if index else imported
        following = needed_later[index + 1] if index + 1 < len(slices) else ()
        row_ids = indexes(rows)
        scored_rows = np.flatnonzero(np.isin(row_ids, scored, assume_unique=True))
        lane_scored.append(row_ids[scored_rows])
        batches.append(
            MicroBatch(
                rows=rows,
                carried=carried,
                first_row=first_row,
                num_rows=len(row_ids),
                scored_rows=scored_rows,
                kept=ranges_in_order(following, carried + rows),
            )
        )
        first_row += len(row_ids)
    return Lane(
        micro_batches=tuple(batches),
        public=published or imported,
        publishes=bool(published),
        num_tokens=first_row,
        scored=np.concatenate(lane_scored) if lane_scored else np.empty(0, np.int64),
    )


def _slice_rows(order: Intervals, size: int) -> list[Intervals]:
    slices: list[list[tuple[int, int]]] = [[]]
    room = size
    for start, end in order:
        while start < end:
            if room == 0:
                slices.append([])
                room = size
            stop = min(end, start + room)
            slices[-1].append((start, stop))
            room -= stop - start
            start = stop
    return [tuple(rows) for rows in slices if rows]


def _slice_trees(tree: PrefixTree, order: Intervals) -> list[Intervals]:
    assert tree.tree_starts is not None
    ((first, last),) = order
    starts = tree.tree_starts[(tree.tree_starts >= first) & (tree.tree_starts < last)].tolist()
    return [(bounds,) for bounds in pairwise([*starts, last])]


def _needed_from_each(tree: PrefixTree, slices: list[Intervals]) -> list[Intervals]:
    """For each slice, what it and later slices attend to that was computed before it, sorted."""
    needed: list[Intervals] = [()] * len(slices)
    later: Intervals = ()
    for index in reversed(range(len(slices))):
        segments = segments_of(tree, slices[index])
        seen = union(*(clip_stream(tree.paths[segment.run], segment.end) for segment in segments))
        later = subtract(union(later, seen), union(slices[index]))
        needed[index] = later
    return needed
