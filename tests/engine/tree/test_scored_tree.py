"""Which targets belong to which prompts, and which group of lanes completes them, against walks of a trie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.engine.tree.lanes import EMPTY_LANE, Lane, split_lanes
from strata.engine.tree.targets import ScoredTree, TargetTable, build_scored_tree
from strata.engine.types import Prompt

from ..heads.scored_prompts import branch, prompt
from .test_packing import rows_of
from .test_prefix_tree import TrieNode, ancestors, sequence_lists, walk_trie

NO_TOKEN = -1

quick = settings(deadline=None, max_examples=60)


@dataclass(frozen=True, kw_only=True)
class ScoredPrompts:
    """Prompts, the trie of their branches, and the tree under test."""

    prompts: list[Prompt]
    nodes: list[TrieNode]
    scored_tree: ScoredTree

    def readout_of(self, token_ids: list[int]) -> int:
        """Index of the node that these tokens lead to."""
        (found,) = (
            index
            for index in range(len(self.nodes))
            if [self.nodes[node].token_id for node in ancestors(self.nodes, index)] == token_ids
        )
        return found

    def targets(self, index: int) -> list[list[tuple[int, int]]]:
        """For each branch of a prompt its (stream index of the readout, token id)."""
        targets = []
        for one in self.prompts[index].branches:
            ends = [target.position + (target.token_id is None) for target in one.targets]
            tokens = [NO_TOKEN if target.token_id is None else target.token_id for target in one.targets]
            readouts = [self.readout_of(one.token_ids[:end].tolist()) for end in ends]
            targets.append(list(zip(readouts, tokens, strict=True)))
        return targets


@st.composite
def scored_prompts(draw: st.DrawFn) -> ScoredPrompts:
    """Prompts of one branch to four, whose branches may share beginnings with those of any prompt."""
    sequences = draw(sequence_lists(max_sequences=12))
    prompts, branches = [], []
    for number, sequence in enumerate(sequences):
        readouts = draw(st.lists(st.integers(0, len(sequence) - 1), min_size=1, max_size=3, unique=True))
        # After a readout comes the token that is predicted; without one the readout goes to a classifier.
        tokens = [draw(st.none() | st.integers(0, 9)) for _ in readouts]
        targets = [
            (place + (token is not None), token) for place, token in zip(readouts, tokens, strict=True)
        ]
        branches.append(branch(len(branches), sequence.tolist(), targets))
        if len(branches) == 4 or number == len(sequences) - 1 or draw(st.booleans()):
            prompts.append(prompt(branches, name=str(number)))
            branches = []
    return ScoredPrompts(prompts=prompts, nodes=walk_trie(sequences), scored_tree=build_scored_tree(prompts))


def spell_out(table: TargetTable) -> list[tuple[int, int, int]]:
    """(branch, stream index of the readout, token id) of every target."""
    streams = table.scored[table.rows].tolist()
    return list(zip(table.branches.tolist(), streams, table.token_ids.tolist(), strict=True))


def spell_expected(given_prompts: ScoredPrompts, indexes: list[int]) -> list[tuple[int, int, int]]:
    branches = [targets for index in indexes for targets in given_prompts.targets(index)]
    return [(number, *target) for number, targets in enumerate(branches) for target in targets]


@quick
@given(scored_prompts())
def test_the_tree_reads_out_every_target_of_every_prompt(given_prompts):
    tree = given_prompts.scored_tree
    everything = spell_expected(given_prompts, list(range(len(given_prompts.prompts))))
    assert spell_out(tree.targets) == everything
    assert tree.scored.tolist() == sorted({stream for _, stream, _ in everything})
    assert tree.targets.num_branches == sum(len(one.branches) for one in given_prompts.prompts)


@quick
@given(scored_prompts(), st.data())
def test_targets_of_some_prompts_are_those_of_their_branches_renumbered(given_prompts, data):
    places = st.integers(0, len(given_prompts.prompts) - 1)
    chosen = sorted(data.draw(st.sets(places, min_size=1)))
    table = given_prompts.scored_tree.targets_of(chosen)
    assert spell_out(table) == spell_expected(given_prompts, chosen)
    assert table.num_branches == sum(len(given_prompts.prompts[index].branches) for index in chosen)
    # Readout rows stay those of the whole job, into which a head looks.
    np.testing.assert_array_equal(table.scored, given_prompts.scored_tree.scored)


def deal(lanes: tuple[Lane, ...], num_devices: int) -> list[tuple[Lane, ...]]:
    """Groups of lanes, one a device; the last may be empty."""
    lanes += (EMPTY_LANE,) * (-len(lanes) % num_devices)
    return [lanes[first : first + num_devices] for first in range(0, len(lanes), num_devices)]


@quick
@given(scored_prompts(), st.integers(1, 9), st.integers(1, 3), st.integers(1, 20))
def test_a_prompt_is_completed_by_the_group_that_computes_its_last_readout(
    given_prompts, num_lanes, num_devices, micro_batch_tokens
):
    tree = given_prompts.scored_tree
    groups = deal(split_lanes(tree.tree, tree.scored, num_lanes, micro_batch_tokens), num_devices)
    group_of = {row: group for group, lanes in enumerate(groups) for lane in lanes for row in rows_of(lane)}
    expected: list[list[int]] = [[] for _ in groups]
    for index in range(len(given_prompts.prompts)):
        last = max(group_of[stream] for targets in given_prompts.targets(index) for stream, _ in targets)
        expected[last].append(index)
    assert [list(indexes) for indexes in tree.completed_by(groups)] == expected
