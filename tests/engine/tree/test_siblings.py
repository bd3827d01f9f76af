"""Trees of sequences with siblings, against a trie of (part, token) whose nodes see what walking up shows.

Independent check: the rule itself (before: everything before; a sibling: what is before the first, and
itself; behind: everything), a node at a time; lanes, halves and tiles are held against the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.engine.tree.halving import cut_micro_batch
from strata.engine.tree.intervals import clip_stream
from strata.engine.tree.lanes import Lane, MicroBatch, split_lanes
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree, count_visible
from strata.engine.tree.tiles import build_scored_tiles, build_tiles
from strata.kernels.prefix_attention.tile import TileCut

from .test_packing import in_order, rows_of
from .test_tiling import cuts, mask_of_tiles, windows

quick = settings(deadline=None, max_examples=80)
tokens = st.integers(0, 2)
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A token: its part (0 before, k the k-th sibling, -1 behind), position, and the nodes above it."""

    token: int
    part: int
    position: int
    above: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Forked:
    """A tree with its nodes in stream order, and lanes."""

    sequences: list[np.ndarray]
    siblings: list[Spans]
    tree: PrefixTree
    nodes: list[Node]
    lanes: tuple[Lane, ...]


def parts_of(length: int, siblings: Spans) -> list[tuple[int, int]]:
    """(part, position) of every token of a sequence, counted one by one."""
    found = []
    deepest = 0
    for index in range(length):
        inside = [k for k, (start, end) in enumerate(siblings, start=1) if start <= index < end]
        if inside:
            start = siblings[inside[0] - 1][0]
            found.append((inside[0], siblings[0][0] + index - start))
        elif siblings and index >= siblings[-1][1]:
            found.append((-1, deepest + 1))
        else:
            found.append((0, index))
        deepest = max(deepest, found[-1][1])
    return found


def walk(sequences: list[np.ndarray], siblings: list[Spans]) -> list[Node]:
    """Nodes in depth-first order, children by part and token as the stream has them."""
    root: dict = {}
    for sequence, spans in zip(sequences, siblings, strict=True):
        children = root
        for token, (part, position) in zip(sequence.tolist(), parts_of(len(sequence), spans), strict=True):
            # Bytes of a negative number come last.
            key = (part % 2**32, token, position)
            children = children.setdefault(key, {})
    nodes: list[Node] = []

    def visit(children: dict, above: tuple[int, ...]) -> None:
        for part, token, position in sorted(children):
            signed = -1 if part == 2**32 - 1 else part
            nodes.append(Node(token=token, part=signed, position=position, above=above))
            visit(children[part, token, position], (*above, len(nodes) - 1))

    visit(root, ())
    return nodes


def seen_by(nodes: list[Node], index: int, window: int | None = None) -> list[int]:
    node = nodes[index]
    return [
        other
        for other in (*node.above, index)
        if (node.part == -1 or nodes[other].part in (0, node.part))
        and (window is None or nodes[other].position > node.position - window)
    ]


@st.composite
def forked_trees(draw: st.DrawFn) -> Forked:
    sequences, siblings = [], []
    for _ in range(draw(st.integers(1, 7))):
        before = draw(st.lists(tokens, max_size=4))
        spans = draw(st.lists(st.lists(tokens, min_size=1, max_size=4), max_size=4))
        behind = draw(st.lists(tokens, min_size=0 if before or spans else 1, max_size=4))
        ends = np.cumsum([len(before), *map(len, spans)]).tolist()
        sequences.append(np.array([*before, *chain.from_iterable(spans), *behind], np.int32))
        siblings.append(tuple(pairwise(ends)))
    tree = build_prefix_tree(sequences, siblings)
    scored = np.array(sorted(draw(st.sets(st.integers(0, tree.num_tokens - 1)))), np.int64)
    lanes = split_lanes(tree, scored, draw(st.integers(1, 5)), draw(st.integers(1, 12)))
    return Forked(
        sequences=sequences, siblings=siblings, tree=tree, nodes=walk(sequences, siblings), lanes=lanes
    )


@quick
@given(forked_trees())
def test_the_stream_is_the_trie_and_a_token_sees_its_runs_path(forked):
    tree, nodes = forked.tree, forked.nodes
    assert tree.token_ids.tolist() == [node.token for node in nodes]
    assert tree.position_ids.tolist() == [node.position for node in nodes]
    for run in range(tree.num_runs):
        for token in range(tree.run_starts[run], tree.run_starts[run + 1]):
            assert in_order(clip_stream(tree.paths[run], token + 1)) == seen_by(nodes, token)
            assert in_order(clip_stream(tree.chains[run], token + 1)) == [*nodes[token].above, token]
    for number, sequence in enumerate(forked.sequences):
        np.testing.assert_array_equal(tree.spell(number), sequence)
        places = [tree.locate(number, index) for index in range(len(sequence))]
        parts = parts_of(len(sequence), forked.siblings[number])
        assert [(nodes[place].part, nodes[place].position) for place in places] == parts


@quick
@given(forked_trees(), windows)
def test_keys_are_counted(forked, window):
    expected = [len(seen_by(forked.nodes, index, window)) for index in range(len(forked.nodes))]
    assert count_visible(forked.tree, window).tolist() == expected


@quick
@given(forked_trees())
def test_every_key_that_a_row_sees_is_in_its_key_space_and_computed_before(forked):
    public = set(in_order(forked.lanes[0].public))
    assert sorted(row for lane in forked.lanes for row in rows_of(lane)) == list(range(len(forked.nodes)))
    for number, lane in enumerate(forked.lanes):
        place = {row: index for index, row in enumerate(rows_of(lane))}
        for batch in lane.micro_batches:
            keys = set(in_order(batch.key_space))
            for row in in_order(batch.rows):
                seen = seen_by(forked.nodes, row)
                assert set(seen) <= keys
                assert all(place.get(key, -1) <= place[row] for key in seen)
                assert number == 0 or all(key in place or key in public for key in seen)


@quick
@given(forked_trees(), cuts, windows)
def test_tiles_show_each_row_what_it_sees_once(forked, cut, window):
    for lane in forked.lanes:
        for batch in lane.micro_batches:
            assert_tiles(forked, batch, cut, window)
            following = [after.carried for after in lane.micro_batches if after.first_row > batch.first_row]
            for part in halves(forked.tree, batch, following[0] if following else ()):
                assert_tiles(forked, part, cut, window)


def halves(tree: PrefixTree, batch: MicroBatch, following: Spans) -> tuple[MicroBatch, ...]:
    if batch.num_rows < 2:
        return ()
    return cut_micro_batch(tree, batch, batch.num_rows // 2, following)


def assert_tiles(forked: Forked, batch: MicroBatch, cut: TileCut, window: int | None) -> None:
    keys = in_order(batch.key_space)
    rows = in_order(batch.rows)
    for build, shown in (
        (build_tiles, rows),
        (build_scored_tiles, [rows[row] for row in batch.scored_rows.tolist()]),
    ):
        expected = np.array([[key in seen_by(forked.nodes, row, window) for key in keys] for row in shown])
        tiles = build(forked.tree, batch, cut, window)
        np.testing.assert_array_equal(
            mask_of_tiles(tiles, len(shown), len(keys)), expected.reshape(len(shown), len(keys))
        )


def test_options_begin_at_one_position_and_what_follows_goes_on_behind_the_longest():
    ids = np.array([7, 8, 1, 1, 1, 2, 3, 3, 9, 9], np.int32)
    tree = build_prefix_tree([ids], [((2, 5), (5, 6), (6, 8))])
    assert tree.position_ids.tolist() == [0, 1, 2, 3, 4, 2, 2, 3, 5, 6]
    assert tree.paths == (((0, 2),), ((0, 5),), ((0, 2), (5, 6)), ((0, 2), (6, 8)), ((0, 10),))


def test_a_sibling_is_no_token_of_another_part():
    plain, forked = np.array([1, 2, 3, 4], np.int32), np.array([1, 2, 3, 4], np.int32)
    tree = build_prefix_tree([plain, forked, forked], [(), ((1, 2), (2, 3)), ((1, 3),)])
    assert tree.num_tokens == 1 + 3 + 3 + 2, "the first token is shared, and the first of the first sibling"


@pytest.mark.parametrize(
    "siblings", [((0, 1), (2, 3)), ((1, 1), (1, 2)), ((2, 5),), ((1, 3), (2, 4))], ids=str
)
def test_siblings_that_do_not_follow_one_another_are_refused(siblings):
    with pytest.raises(ValueError, match="siblings"):
        build_prefix_tree([np.array([1, 2, 3], np.int32)], [siblings])
