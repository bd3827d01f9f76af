"""A micro-batch cut in two. Independent check: what `split_lanes` makes of a smaller size."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strata.engine.tree.halving import cut_micro_batch
from strata.engine.tree.lanes import Lane, MicroBatch, split_lanes

from .test_packing import packed_trees, quick


def described(batch: MicroBatch) -> tuple:
    return (
        batch.rows,
        batch.carried,
        batch.first_row,
        batch.num_rows,
        batch.scored_rows.tolist(),
        batch.kept,
    )


def cut_all(packed, lane: Lane, size: int, last_first: bool) -> list[MicroBatch]:
    """Every micro-batch that is longer than `size` in two, from the last one on or from the first one on."""
    batches = list(lane.micro_batches)
    order = range(len(batches))
    for number in reversed(order) if last_first else order:
        index = number if last_first else number + len(batches) - len(lane.micro_batches)
        batch = batches[index]
        if batch.num_rows > size:
            following = batches[index + 1].carried if index + 1 < len(batches) else ()
            batches[index : index + 1] = cut_micro_batch(packed.tree, batch, size, following)
    return batches


@quick
@given(packed_trees(), st.booleans())
def test_cut_micro_batches_are_those_of_a_smaller_size(packed, last_first):
    size = packed.micro_batch_tokens
    large = split_lanes(packed.tree, packed.scored, packed.num_lanes, 2 * size)
    assert len(large) == len(packed.lanes)
    for lane, smaller in zip(large, packed.lanes, strict=True):
        found = [described(batch) for batch in cut_all(packed, lane, size, last_first)]
        assert found == [described(batch) for batch in smaller.micro_batches]
        np.testing.assert_array_equal(lane.scored, smaller.scored)
