"""Lanes and micro-batches: each token computed once, each key where it is needed, nothing carried in vain."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.engine.sweep.coordinator import Coordinator
from strata.engine.sweep.shared_keys import PublicKeys
from strata.engine.tree.lanes import CUT_SLACK, Lane, ranges_in_order, segments_of, split_lanes, to_key_space
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree

from .test_prefix_tree import TrieNode, ancestors, members, sequence_lists, walk_trie

quick = settings(deadline=None, max_examples=60)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A tree, its trie, what is scored, and the lanes it was split into."""

    tree: PrefixTree
    nodes: list[TrieNode]
    scored: np.ndarray
    num_lanes: int
    micro_batch_tokens: int
    lanes: tuple[Lane, ...]


@st.composite
def packed_trees(draw: st.DrawFn) -> Packed:
    sequences = draw(sequence_lists(max_sequences=14))
    tree = build_prefix_tree(sequences)
    scored = np.array(sorted(draw(st.sets(st.integers(0, tree.num_tokens - 1)))), np.int64)
    num_lanes, size = draw(st.integers(1, 7)), draw(st.integers(1, 20))
    return Packed(
        tree=tree,
        nodes=walk_trie(sequences),
        scored=scored,
        num_lanes=num_lanes,
        micro_batch_tokens=size,
        lanes=split_lanes(tree, scored, num_lanes, size),
    )


def in_order(intervals: tuple[tuple[int, int], ...]) -> list[int]:
    """Stream or key indexes of intervals, in their order."""
    return [index for start, end in intervals for index in range(start, end)]


def rows_of(lane: Lane) -> list[int]:
    return [row for batch in lane.micro_batches for row in in_order(batch.rows)]


@quick
@given(packed_trees())
def test_every_token_is_computed_by_one_lane_once(packed):
    assert 1 <= len(packed.lanes) <= packed.num_lanes
    computed = [row for lane in packed.lanes for row in rows_of(lane)]
    assert sorted(computed) == list(range(packed.tree.num_tokens))
    assert [lane.num_tokens for lane in packed.lanes] == [len(rows_of(lane)) for lane in packed.lanes]


@quick
@given(packed_trees())
def test_micro_batches_are_full_but_the_last(packed):
    for lane in packed.lanes:
        sizes = [len(in_order(batch.rows)) for batch in lane.micro_batches]
        assert all(size == packed.micro_batch_tokens for size in sizes[:-1])
        assert all(0 < size <= packed.micro_batch_tokens for size in sizes)
        assert [batch.num_rows for batch in lane.micro_batches] == sizes
        assert [batch.first_row for batch in lane.micro_batches] == np.cumsum([0, *sizes])[:-1].tolist()


@quick
@given(packed_trees())
def test_every_key_a_row_needs_is_in_its_key_space(packed):
    for lane in packed.lanes:
        for batch in lane.micro_batches:
            keys = in_order(batch.key_space)
            assert len(keys) == len(set(keys)) == batch.num_carried + batch.num_rows
            assert keys[batch.num_carried :] == in_order(batch.rows)
            for row in in_order(batch.rows):
                assert set(ancestors(packed.nodes, row)) <= set(keys)


@quick
@given(packed_trees())
def test_a_key_is_there_before_the_row_that_sees_it(packed):
    """Ancestors in the same lane are earlier rows, or their keys would not be computed yet."""
    for lane in packed.lanes:
        place = {row: position for position, row in enumerate(rows_of(lane))}
        for row in place:
            assert all(place.get(key, -1) <= place[row] for key in ancestors(packed.nodes, row))


@quick
@given(packed_trees())
def test_carried_tokens_are_the_kept_ranges_of_the_batch_before(packed):
    for lane in packed.lanes:
        for batch, following in pairwise(lane.micro_batches):
            keys = in_order(batch.key_space)
            assert [keys[index] for index in in_order(batch.kept)] == in_order(following.carried)
        assert all(not batch.kept for batch in lane.micro_batches[-1:])


@quick
@given(packed_trees())
def test_nothing_is_carried_that_no_later_row_sees(packed):
    for lane in packed.lanes:
        wanted: set[int] = set()
        for batch in reversed(lane.micro_batches[1:]):
            wanted.update(key for row in in_order(batch.rows) for key in ancestors(packed.nodes, row))
            assert set(in_order(batch.carried)) <= wanted


@quick
@given(packed_trees())
def test_public_tokens_come_first_and_are_what_other_lanes_take(packed):
    first, others = packed.lanes[0], packed.lanes[1:]
    public = in_order(first.public) if first.publishes else []
    assert rows_of(first)[: len(public)] == public
    owner = {row: number for number, lane in enumerate(packed.lanes) for row in rows_of(lane)}
    seen_elsewhere: set[int] = set()
    for number, lane in enumerate(others, start=1):
        assert not lane.publishes
        foreign = {
            key for row in rows_of(lane) for key in ancestors(packed.nodes, row) if owner[key] != number
        }
        seen_elsewhere |= foreign
        assert foreign <= set(in_order(lane.public)) <= set(public)
        assert all(batch.carried == lane.public for batch in lane.micro_batches[:1])
    assert seen_elsewhere <= set(public)


@quick
@given(packed_trees())
def test_scored_rows_lead_to_scored_stream_indexes(packed):
    for lane in packed.lanes:
        found = [
            in_order(batch.rows)[row] for batch in lane.micro_batches for row in batch.scored_rows.tolist()
        ]
        assert found == lane.scored.tolist() == [row for row in rows_of(lane) if row in packed.scored]
        assert all((np.diff(batch.scored_rows) > 0).all() for batch in lane.micro_batches)
    assert sorted(row for lane in packed.lanes for row in lane.scored.tolist()) == packed.scored.tolist()


@quick
@given(packed_trees())
def test_lanes_are_balanced_to_within_a_run(packed):
    """Lanes begin where runs do, near their fair share; the first lane has the public tokens on top."""
    longest = int(np.diff(packed.tree.run_starts).max())
    fair = packed.tree.num_tokens / packed.num_lanes
    public = len(in_order(packed.lanes[0].public))
    for number, lane in enumerate(packed.lanes):
        assert lane.num_tokens <= fair * (1 + 2 * CUT_SLACK) + longest + (public if number == 0 else 0)


def test_lanes_begin_between_questions_where_they_can():
    template = [1, 2, 3]
    sequences = [
        np.array([*template, 10 + question, *range(20), 40 + option, 7])
        for question in range(20)
        for option in range(4)
    ]
    lanes = split_lanes(build_prefix_tree(sequences), np.arange(0), 4, 16)
    assert len(lanes) == 4
    assert [lane.public for lane in lanes] == [((0, 3),)] * 4
    assert [lane.num_tokens for lane in lanes] == [3 + 5 * 29, 5 * 29, 5 * 29, 5 * 29]


def test_of_cuts_that_share_about_as_much_the_one_nearest_an_equal_share_is_taken():
    """200 questions of 40 to 60 tokens, some with the same first word: lanes differ by a question."""
    numbers = np.random.default_rng(0)
    lengths = numbers.integers(40, 60, 200)
    sequences = [
        np.append(numbers.integers(0, 30, 2), numbers.integers(30, 999, length)) for length in lengths
    ]
    tree = build_prefix_tree([np.append(0, row).astype(np.int32) for row in sequences])
    for num_lanes in (2, 4):
        lanes = split_lanes(tree, np.arange(0), num_lanes, 512)
        sizes = [lane.num_tokens for lane in lanes]
        assert max(sizes) - min(sizes) <= 2 * 60
        assert all(sum(end - start for start, end in lane.public) <= 3 * num_lanes for lane in lanes)


def test_equal_branches_split_evenly():
    prefix = list(range(50))
    sequences = [np.array([*prefix, 100 + option, *range(9)]) for option in range(9)]
    tree = build_prefix_tree(sequences)
    lanes = split_lanes(tree, np.arange(0), 2, 16)
    # The longest run holds the prefix and the first branch: 60 tokens, then 8 branches of 10.
    assert [lane.num_tokens for lane in lanes] == [70, 70]
    assert [lane.public for lane in lanes] == [((0, 50),), ((0, 50),)]


def test_a_run_that_is_public_as_a_whole():
    """The second lane's last run belongs to the third's path: the first computes it, all agree where."""
    sequences = [[1] * 30, [2] * 20, [3] * 10, [3] * 10 + [4] * 30]
    tree = build_prefix_tree([np.array(sequence) for sequence in sequences])
    lanes = split_lanes(tree, np.arange(0), 3, 100)
    assert [rows_of(lane) for lane in lanes] == [
        [*range(50, 60), *range(30)],
        [*range(30, 50)],
        [*range(60, 90)],
    ]
    assert lanes[0].public == lanes[2].public == ((50, 60),)
    assert all(lane.micro_batches[0].carried == lane.public for lane in lanes[1:])


def test_a_single_lane_publishes_nothing():
    tree = build_prefix_tree([np.array([1, 2, 3]), np.array([1, 2, 4])])
    (lane,) = split_lanes(tree, np.array([2, 3]), 1, 2)
    assert (lane.publishes, lane.public) == (False, ())
    assert [batch.carried for batch in lane.micro_batches] == [(), ((0, 2),)]


@quick
@given(packed_trees())
def test_keys_handed_from_lane_to_lane_are_the_right_ones(packed):
    """A dry run of a sweep where a token's key is its stream index: carried, published and taken as there."""
    public_keys = PublicKeys(Coordinator())
    for lane in packed.lanes:
        carried = public_keys.take("member", 0, lane, torch.device("cpu")) if lane.micro_batches else None
        for batch in lane.micro_batches:
            own = torch.tensor(in_order(batch.rows)).expand(2, 1, -1)[..., None]
            key_values = own if carried is None else torch.cat((carried, own), dim=2)
            assert key_values[1, 0, :, 0].tolist() == in_order(batch.key_space)
            public_keys.publish("member", 0, lane, batch, key_values)
            parts = [key_values[:, :, start:end] for start, end in batch.kept]
            carried = torch.cat(parts, dim=2) if parts else None


@quick
@given(packed_trees())
def test_segments_cut_rows_at_run_boundaries(packed):
    for lane in packed.lanes:
        for batch in lane.micro_batches:
            segments = segments_of(packed.tree, batch.rows)
            rows = [(row, part.run) for part in segments for row in range(part.start, part.end)]
            starts = packed.tree.run_starts
            assert [row for row, _ in rows] == in_order(batch.rows)
            assert all(starts[run] <= row < starts[run + 1] for row, run in rows)
            assert [part.row for part in segments] == [
                sum(earlier.end - earlier.start for earlier in segments[:number])
                for number in range(len(segments))
            ]


# Stream [10, 20) and [3, 6) carried out of order, then own rows [20, 24): key 0 is stream token 10.
KEY_SPACE = ((10, 20), (3, 6), (20, 24))


def test_key_space_ranges_ascend_in_the_stream():
    assert to_key_space(((3, 5), (12, 22)), KEY_SPACE) == ((10, 12), (2, 10), (13, 15))


def test_ranges_in_order_follow_the_wanted_intervals():
    assert ranges_in_order(((12, 22), (3, 5)), KEY_SPACE) == ((2, 10), (13, 15), (10, 12))


def test_a_range_is_split_where_its_keys_lie_out_of_order():
    assert to_key_space(((12, 22),), ((20, 24), (10, 20))) == ((6, 14), (0, 2))


@pytest.mark.parametrize("missing", [(2, 4), (5, 7), (6, 10), (19, 25)])
def test_a_stream_token_outside_the_key_space_is_a_mistake(missing):
    with pytest.raises(AssertionError, match="not wholly in the key space"):
        to_key_space((missing,), KEY_SPACE)


@quick
@given(packed_trees())
def test_key_space_ranges_point_at_the_stream(packed):
    for lane in packed.lanes:
        for batch in lane.micro_batches:
            keys = in_order(batch.key_space)
            for segment in segments_of(packed.tree, batch.rows):
                path = packed.tree.paths[segment.run]
                clipped = tuple((start, min(end, segment.end)) for start, end in path if start < segment.end)
                pointed = [keys[index] for index in in_order(to_key_space(clipped, batch.key_space))]
                assert pointed == sorted(members(clipped))
