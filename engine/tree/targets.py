"""Which readouts a job needs, and which of them belong to which branch and prompt. Knows nothing of heads.

Shapes: prompts [Q] with branches, all branches' token ids -> PrefixTree of T tokens; their n targets -> S
readout rows, one a distinct scored token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from strata.engine.tree.lanes import Lane
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree, join_trees
from strata.engine.types import Prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetTable:
    """Every target of a job, branch after branch.

    Attributes:
        branches: [n] global branch number of each target.
        rows: [n] readout row of each target.
        token_ids: [n] token ids, -1 where the readout goes to a classifier.
        num_branches: branches of the job.
        scored: [S] ascending stream indexes, one a readout row.
    """

    branches: np.ndarray
    rows: np.ndarray
    token_ids: np.ndarray
    num_branches: int
    scored: np.ndarray

    def select(self, branches: np.ndarray) -> TargetTable:
        """The targets of some branches, given in ascending order and renumbered from 0; readout rows stay."""
        wanted = np.isin(self.branches, branches)
        return replace(
            self,
            branches=np.searchsorted(branches, self.branches[wanted]),
            rows=self.rows[wanted],
            token_ids=self.token_ids[wanted],
            num_branches=len(branches),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredTree:
    """The prefix tree of a job's branches and what is read off it.

    Attributes:
        tree: all branches of all prompts, as one trie.
        targets: what is read off it.
        branch_ends: [Q] for each prompt the number of branches up to its last one.
    """

    tree: PrefixTree
    targets: TargetTable
    branch_ends: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """[S] ascending stream indexes whose readouts are needed."""
        return self.targets.scored

    def targets_of(self, prompts: Sequence[int]) -> TargetTable:
        """The targets of some prompts, given by their indexes in ascending order."""
        starts = np.concatenate(([0], self.branch_ends))
        chosen = [np.arange(starts[index], starts[index + 1]) for index in prompts]
        return self.targets.select(np.concatenate(chosen))

    def completed_by(self, groups: Sequence[tuple[Lane, ...]]) -> tuple[tuple[int, ...], ...]:
        """For each group of lanes the indexes of the prompts whose last readout it computes."""
        targets = self.targets
        group_of_row = np.zeros(len(targets.scored), np.int64)
        for group, lanes in enumerate(groups):
            for lane in lanes:
                group_of_row[np.searchsorted(targets.scored, lane.scored)] = group
        last_group = np.zeros(targets.num_branches, np.int64)
        np.maximum.at(last_group, targets.branches, group_of_row[targets.rows])
        completed: list[list[int]] = [[] for _ in groups]
        first = 0
        for index, end in enumerate(self.branch_ends.tolist()):
            completed[last_group[first:end].max()].append(index)
            first = end
        return tuple(tuple(indexes) for indexes in completed)


def build_scored_tree(prompts: Sequence[Prompt], *, apart: bool = False) -> ScoredTree:
    """The tree of all branches of some prompts, with their targets; if `apart`, a forest, a tree a prompt."""
    trees = [build_prompt_tree([prompt]) for prompt in prompts] if apart else []
    tree = join_trees(trees) if apart else build_prompt_tree(prompts)
    ends = np.cumsum([len(prompt.branches) for prompt in prompts])
    return ScoredTree(tree=tree, targets=build_target_table(prompts, tree), branch_ends=ends)


def build_prompt_tree(prompts: Sequence[Prompt]) -> PrefixTree:
    """The tree alone; its sequences are the branches, in order."""
    branches = [branch for prompt in prompts for branch in prompt.branches]
    return build_prefix_tree(
        [branch.token_ids for branch in branches], [branch.siblings for branch in branches]
    )


def build_target_table(prompts: Sequence[Prompt], tree: PrefixTree) -> TargetTable:
    """Finds the readout of every target of every branch; branches are the tree's sequences, in order."""
    branches, streams, token_ids = [], [], []
    all_branches = [branch for prompt in prompts for branch in prompt.branches]
    for number, branch in enumerate(all_branches):
        for target in branch.targets:
            branches.append(number)
            streams.append(tree.locate(number, target.readout_position))
            token_ids.append(-1 if target.token_id is None else target.token_id)
    scored, rows = np.unique(np.asarray(streams, np.int64), return_inverse=True)
    return TargetTable(
        branches=np.asarray(branches, np.int64),
        rows=rows.astype(np.int64),
        token_ids=np.asarray(token_ids, np.int64),
        num_branches=len(all_branches),
        scored=scored,
    )
