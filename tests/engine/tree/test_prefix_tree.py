"""Prefix trees against a dictionary-of-dictionaries trie, interval helpers against Python sets.

Also owns that trie, `walk_trie`, and the strategy `sequence_lists`: the oracles of packing, tiling and costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strata.engine.tree.intervals import (
    clip_path,
    clip_stream,
    count,
    indexes,
    join_intervals,
    subtract,
    union,
)
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree, common_prefix_length

# Few letters make prefixes collide; 256 and 65,536 sort wrongly when bytes are compared in the wrong order.
ALPHABET = (0, 1, 256, 65_536, 128_255)

quick = settings(deadline=None, max_examples=60)


@st.composite
def sequence_lists(draw: st.DrawFn, max_sequences: int = 10, max_length: int = 12) -> list[np.ndarray]:
    """Token sequences that share prefixes, extend or repeat each other, in any order."""
    tokens = st.sampled_from(ALPHABET[: draw(st.integers(1, len(ALPHABET)))])
    sequences: list[list[int]] = []
    for _ in range(draw(st.integers(1, max_sequences))):
        parent = draw(st.sampled_from(sequences)) if sequences and draw(st.booleans()) else []
        start = parent[: draw(st.integers(0, len(parent)))]
        room = max_length - len(start)
        sequences.append(start + draw(st.lists(tokens, min_size=0 if start else 1, max_size=max(room, 1))))
    return [np.array(sequence, np.int32) for sequence in sequences]


@dataclass(frozen=True, kw_only=True)
class TrieNode:
    """One token of a trie: id, depth, and the index of its parent in depth-first order (None: a root)."""

    token_id: int
    depth: int
    parent: int | None


def walk_trie(sequences: list[np.ndarray]) -> list[TrieNode]:
    """Nodes in depth-first order, children by ascending token id; knows no sorted sequences and no runs."""
    root: dict = {}
    for sequence in sequences:
        children = root
        for token in sequence.tolist():
            children = children.setdefault(token, {})
    nodes: list[TrieNode] = []

    def visit(children: dict, depth: int, parent: int | None) -> None:
        for token in sorted(children):
            nodes.append(TrieNode(token_id=token, depth=depth, parent=parent))
            visit(children[token], depth + 1, len(nodes) - 1)

    visit(root, 0, None)
    return nodes


def ancestors(nodes: list[TrieNode], index: int) -> list[int]:
    """Indexes from the root to the node itself, found by walking up."""
    chain = [index]
    while (parent := nodes[chain[-1]].parent) is not None:
        chain.append(parent)
    return chain[::-1]


def spelled(tree: PrefixTree, path: tuple[tuple[int, int], ...]) -> list[int]:
    """Stream indexes of a path, without the module's own `indexes`."""
    return [index for start, end in path for index in range(start, end)]


@quick
@given(sequence_lists())
def test_stream_is_the_trie_in_depth_first_order(sequences):
    tree, nodes = build_prefix_tree(sequences), walk_trie(sequences)
    assert tree.num_tokens == len(nodes)
    assert tree.token_ids.tolist() == [node.token_id for node in nodes]
    assert tree.position_ids.tolist() == [node.depth for node in nodes]
    assert tree.token_ids.dtype == tree.position_ids.dtype == np.int32


@quick
@given(sequence_lists())
def test_every_sequence_is_spelled_and_located(sequences):
    tree = build_prefix_tree(sequences)
    for number, sequence in enumerate(sequences):
        np.testing.assert_array_equal(tree.spell(number), sequence)
        located = [tree.locate(number, position) for position in range(len(sequence))]
        assert located == spelled(tree, tree.sequence_paths[number])
        assert tree.position_ids[located].tolist() == list(range(len(sequence)))
        with pytest.raises(
            IndexError, match=f"position {len(sequence)} of a sequence of {len(sequence)} tokens"
        ):
            tree.locate(number, len(sequence))


@quick
@given(sequence_lists())
def test_a_token_sees_its_runs_path_clipped_at_itself(sequences):
    tree, nodes = build_prefix_tree(sequences), walk_trie(sequences)
    assert len(tree.paths) == tree.num_runs == len(tree.run_starts) - 1
    assert tree.run_starts[0] == 0
    assert tree.run_starts[-1] == tree.num_tokens
    assert (np.diff(tree.run_starts) > 0).all()
    for run, (start, end) in enumerate(pairwise(tree.run_starts)):
        for token in range(start, end):
            assert spelled(tree, clip_stream(tree.paths[run], token + 1)) == ancestors(nodes, token)


@quick
@given(sequence_lists(), st.randoms(use_true_random=False))
def test_order_and_repeats_of_sequences_do_not_matter(sequences, random):
    shuffled = sequences + sequences[:3]
    random.shuffle(shuffled)
    tree, same = build_prefix_tree(sequences), build_prefix_tree(shuffled)
    np.testing.assert_array_equal(tree.token_ids, same.token_ids)
    np.testing.assert_array_equal(tree.position_ids, same.position_ids)
    np.testing.assert_array_equal(tree.run_starts, same.run_starts)
    assert tree.paths == same.paths


def test_a_run_for_every_place_where_a_branch_leaves():
    tree = build_prefix_tree([np.array(ids) for ids in ([5, 6, 7], [5, 6], [5, 8], [9], [5, 6, 7, 1])])
    assert tree.token_ids.tolist() == [5, 6, 7, 1, 8, 9]
    assert tree.position_ids.tolist() == [0, 1, 2, 3, 1, 0]
    assert tree.run_starts.tolist() == [0, 2, 3, 4, 5, 6]
    assert tree.sequence_paths == (((0, 3),), ((0, 2),), ((0, 1), (4, 5)), ((5, 6),), ((0, 4),))


def test_duplicates_share_their_path():
    tree = build_prefix_tree([np.array([3, 4])] * 3)
    assert tree.num_tokens == 2
    assert tree.sequence_paths == (((0, 2),),) * 3


@pytest.mark.parametrize("sequences", [[], [[]], [[1, 2], []]])
def test_nothing_to_merge_is_refused(sequences):
    with pytest.raises(ValueError, match="at least one sequence, and every sequence at least one token"):
        build_prefix_tree([np.array(sequence, np.int32) for sequence in sequences])


token_arrays = st.lists(st.integers(0, 2), max_size=6).map(lambda ids: np.array(ids, np.int32))


@quick
@given(token_arrays, token_arrays)
def test_common_prefix_length(a, b):
    shared = common_prefix_length(a, b)
    assert a[:shared].tolist() == b[:shared].tolist()
    assert shared == min(len(a), len(b)) or a[shared] != b[shared]


def as_sorted_intervals(members: set[int]) -> tuple[tuple[int, int], ...]:
    """The canonical form of a set: sorted, disjoint, neighbours never touching."""
    starts = sorted(member for member in members if member - 1 not in members)
    ends = sorted(member + 1 for member in members if member + 1 not in members)
    return tuple(zip(starts, ends, strict=True))


members_of_stream = st.sets(st.integers(0, 24))
pieces_of_stream = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 6)).map(lambda piece: (piece[0], sum(piece))), max_size=6
).map(tuple)


def members(intervals: tuple[tuple[int, int], ...]) -> set[int]:
    return {index for start, end in intervals for index in range(start, end)}


@quick
@given(st.lists(pieces_of_stream, max_size=3))
def test_union_of_overlapping_intervals(sets):
    assert union(*sets) == as_sorted_intervals(set().union(*map(members, sets)))


@quick
@given(members_of_stream, members_of_stream)
@example(kept := {0, 1, 2, 3, 4}, {0}).via("cut at the start")
@example(kept, {1, 3}).via("two cuts in one interval")
@example(kept, {4}).via("cut at the end")
def test_subtract_and_count(a, b):
    left = subtract(as_sorted_intervals(a), as_sorted_intervals(b))
    assert left == as_sorted_intervals(a - b)
    assert count(left) == len(a - b)
    assert indexes(left).tolist() == sorted(a - b)
    assert indexes(left).dtype == np.int64


@quick
@given(members_of_stream, st.integers(0, 26))
def test_clip_stream(a, end):
    clipped = clip_stream(as_sorted_intervals(a), end)
    assert clipped == as_sorted_intervals({index for index in a if index < end})


@quick
@given(pieces_of_stream, st.integers(0, 30))
def test_clip_path_keeps_the_first_tokens_in_order(path, depth):
    in_order = [index for start, end in path for index in range(start, end)]
    assert indexes(clip_path(path, depth)).tolist() == in_order[:depth]


@quick
@given(pieces_of_stream)
def test_join_keeps_the_order_and_joins_what_touches(pieces):
    joined = join_intervals(pieces)
    assert indexes(joined).tolist() == indexes(pieces).tolist()
    assert all(left[1] != right[0] for left, right in pairwise(joined))
    assert all(start < end for start, end in joined)
