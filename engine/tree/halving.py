"""Cuts a micro-batch in two where it does not fit in memory. Knows nothing of memory or of layers.

Flow: MicroBatch, and what the next one carries -> two MicroBatches that take its place: the first carries
what the whole carried, the second what its rows and later ones still attend to. Independent check (tests):
the parts are the micro-batches that `split_lanes` makes when it is asked for smaller ones.
"""

from __future__ import annotations

from strata.engine.tree.intervals import Intervals, clip_stream, subtract, union
from strata.engine.tree.lanes import MicroBatch, ranges_in_order, segments_of
from strata.engine.tree.prefix_tree import PrefixTree


def cut_micro_batch(
    tree: PrefixTree, batch: MicroBatch, num_rows: int, following: Intervals
) -> tuple[MicroBatch, MicroBatch]:
    """Two micro-batches that compute what one does.

    Args:
        tree: of all tokens.
        batch: at least two rows.
        num_rows: rows of the first part, fewer than the micro-batch has.
        following: stream intervals that the next micro-batch of the lane carries, none for the last.
    """
    first_rows, last_rows = _cut_rows(batch.rows, num_rows)
    segments = segments_of(tree, last_rows)
    seen = union(*(clip_stream(tree.paths[segment.run], segment.end) for segment in segments))
    carried = subtract(union(following, seen), union(last_rows))
    scored = batch.scored_rows
    first = MicroBatch(
        rows=first_rows,
        carried=batch.carried,
        first_row=batch.first_row,
        num_rows=num_rows,
        scored_rows=scored[scored < num_rows],
        kept=ranges_in_order(carried, batch.carried + first_rows),
    )
    last = MicroBatch(
        rows=last_rows,
        carried=carried,
        first_row=batch.first_row + num_rows,
        num_rows=batch.num_rows - num_rows,
        scored_rows=scored[scored >= num_rows] - num_rows,
        kept=ranges_in_order(following, carried + last_rows),
    )
    return first, last


def _cut_rows(rows: Intervals, num_rows: int) -> tuple[Intervals, Intervals]:
    first: list[tuple[int, int]] = []
    last: list[tuple[int, int]] = []
    left = num_rows
    for start, end in rows:
        middle = min(end, start + left)
        left -= middle - start
        if start < middle:
            first.append((start, middle))
        if middle < end:
            last.append((middle, end))
    return tuple(first), tuple(last)
