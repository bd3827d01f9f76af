"""Cuts a micro-batch's query rows into attention tiles. Knows the tree and the kernels' Tile, nothing else.

For rows in one tile the keys are the union of what they see, in stream order: intervals seen by every row
first, then those that need a mask. A sliding window of W positions removes keys at
positions <= row position - W. Rows that share no tile with others are a sequence, which needs no mask, in a
window either, unless siblings are above them, whose positions do not follow one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

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
from strata.engine.tree.lanes import MicroBatch, Segment, ranges_in_order, segments_of, to_key_space
from strata.engine.tree.prefix_tree import PrefixTree
from strata.kernels.prefix_attention.tile import PlannedTiles, Tile, TileCut

WASTE_LIMIT = 1.25
"""A tile may compute this many times the scores its segments would need apart."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSegment:
    """Query rows [row, row + len) at stream [start, end) of one run, and the intervals the last one sees."""

    start: int
    end: int
    row: int
    path: Intervals

    @property
    def num_rows(self) -> int:
        """Query rows."""
        return self.end - self.start


def tile_finder(
    tree: PrefixTree, batch: MicroBatch, *, scored: bool
) -> Callable[[TileCut, int | None], PlannedTiles]:
    """What cuts a micro-batch into tiles, each of its answers built once.

    Args:
        tree: of all tokens.
        batch: the micro-batch.
        scored: tiles of the scored rows alone instead of all rows.

    Returns:
        (how to cut, sliding window or None for full attention) -> tiles.
    """
    build = build_scored_tiles if scored else build_tiles
    return cache(lambda cut, window: PlannedTiles(build(tree, batch, cut, window)))


def build_tiles(
    tree: PrefixTree, batch: MicroBatch, cut: TileCut, window: int | None = None
) -> tuple[Tile, ...]:
    """Tiles that cover all rows of a micro-batch."""
    return _cut_tiles(tree, segments_of(tree, batch.rows), batch.key_space, cut, window)


def build_scored_tiles(
    tree: PrefixTree, batch: MicroBatch, cut: TileCut, window: int | None = None
) -> tuple[Tile, ...]:
    """Tiles whose query rows are the micro-batch's scored rows alone, numbered from 0 in order."""
    streams = indexes(batch.rows)[batch.scored_rows].tolist()
    scored = join_intervals(tuple((stream, stream + 1) for stream in streams))
    return _cut_tiles(tree, segments_of(tree, scored), batch.key_space, cut, window)


def _cut_tiles(
    tree: PrefixTree, segments: Iterable[Segment], key_space: Intervals, cut: TileCut, window: int | None
) -> tuple[Tile, ...]:
    parts = (
        RowSegment(
            start=part.start, end=part.end, row=part.row, path=clip_stream(tree.paths[part.run], part.end)
        )
        for whole in segments
        for part in _split_segment(whole, cut.max_rows)
    )
    if cut.joins:
        return tuple(
            _build_tile(tree, group, key_space, window)
            if len(group) > 1 or cut.joined_rows is None
            else _build_sequence(tree, group[0], key_space, window)
            for group in _join_segments(parts, cut)
        )
    return tuple(_build_sequence(tree, part, key_space, window) for part in parts)


def _split_segment(segment: Segment, max_rows: int | None) -> Iterable[Segment]:
    num_rows = segment.end - segment.start
    for start in range(segment.start, segment.end, max_rows or num_rows):
        end = min(segment.end, start + (max_rows or num_rows))
        yield Segment(run=segment.run, start=start, end=end, row=segment.row + start - segment.start)


def _build_sequence(tree: PrefixTree, part: RowSegment, key_space: Intervals, window: int | None) -> Tile:
    """One tile of one segment; with bits only where a window meets positions that do not follow."""
    if window is None:
        return _build_tile(tree, [part], key_space, None)
    first, last = int(tree.position_ids[part.start]), int(tree.position_ids[part.end - 1])
    keys = _deeper_than(tree, union(part.path), first - window)
    num_keys = count(keys)
    if num_keys != last + 1 - int(tree.position_ids[keys[0][0]]):
        return _build_tile(tree, [part], key_space, window)
    return Tile(
        rows=(part.row, part.row + part.num_rows),
        key_ranges=ranges_in_order(keys, key_space),
        num_keys=num_keys,
        num_unmasked=0,
        causal=True,
        visible=None,
        window=window,
    )


def _join_segments(segments: Iterable[RowSegment], cut: TileCut) -> Iterator[list[RowSegment]]:
    """Segments that follow one another, together while that computes few scores in vain."""
    most_rows = cut.joined_rows or cut.max_rows
    group: list[RowSegment] = []
    keys: Intervals = ()
    rows, apart = 0, 0
    for segment in segments:
        joined = union(keys, segment.path)
        cost = segment.num_rows * count(segment.path)
        fits = (most_rows is None or rows + segment.num_rows <= most_rows) and (
            cut.joined_keys is None or count(joined) <= cut.joined_keys
        )
        allowed = WASTE_LIMIT * (apart + cost) + cut.tile_scores * len(group)
        if group and not (fits and (rows + segment.num_rows) * count(joined) <= allowed):
            yield group
            group, joined, rows, apart = [], segment.path, 0, 0
        group.append(segment)
        keys, rows, apart = union(joined), rows + segment.num_rows, apart + cost
    if group:
        yield group


def _build_tile(tree: PrefixTree, group: list[RowSegment], key_space: Intervals, window: int | None) -> Tile:
    depth_of_row = np.concatenate([tree.position_ids[part.start : part.end] for part in group])
    keys = union(*(part.path for part in group))
    if window is not None:
        keys = _deeper_than(tree, keys, int(depth_of_row.min()) - window)
    seen_by_all = _seen_by_all(tree, group, depth_of_row, window)
    unmasked = subtract(keys, subtract(keys, seen_by_all))
    masked = subtract(keys, unmasked)
    rows = (group[0].row, group[-1].row + group[-1].num_rows)
    within_window = window is None or len(depth_of_row) <= window
    alone = len(group) == 1 and within_window and masked == ((group[0].start, group[0].end),)
    return Tile(
        rows=rows,
        key_ranges=join_intervals(to_key_space(unmasked, key_space) + ranges_in_order(masked, key_space)),
        num_keys=count(keys),
        num_unmasked=count(unmasked),
        causal=alone,
        visible=None if alone or not masked else _visible_bits(tree, group, depth_of_row, masked, window),
    )


def _seen_by_all(
    tree: PrefixTree, group: list[RowSegment], depth_of_row: np.ndarray, window: int | None
) -> Intervals:
    """Stream intervals in every row's path: what all segments share, before the first row of each."""
    shared = group[0].path
    for part in group:
        before = clip_stream(part.path, part.start + 1)
        shared = subtract(shared, subtract(shared, union(before)))
    if len(group) == 1 and group[0].num_rows > 1:
        shared = clip_stream(shared, group[0].start)
    if window is not None:
        shared = _deeper_than(tree, shared, int(depth_of_row.max()) - window)
    return union(shared)


def _deeper_than(tree: PrefixTree, intervals: Intervals, depth: int) -> Intervals:
    """The part of the intervals at positions > depth; positions ascend inside a run."""
    kept = []
    for segment in segments_of(tree, intervals):
        first = int(tree.position_ids[segment.start])
        start = segment.start + max(0, depth + 1 - first)
        if start < segment.end:
            kept.append((start, segment.end))
    return union(tuple(kept))


def _visible_bits(
    tree: PrefixTree, group: list[RowSegment], depth_of_row: np.ndarray, masked: Intervals, window: int | None
) -> np.ndarray:
    columns = indexes(masked)
    depth_of_column = tree.position_ids[columns]
    on_path = np.zeros((len(depth_of_row), len(columns)), bool)
    first = 0
    for part in group:
        for start, end in part.path:
            low, high = np.searchsorted(columns, (start, end))
            on_path[first : first + part.num_rows, low:high] = True
        first += part.num_rows
    visible = on_path & (depth_of_column[None, :] <= depth_of_row[:, None])
    if window is not None:
        visible &= depth_of_column[None, :] > depth_of_row[:, None] - window
    return np.packbits(visible, axis=-1)
