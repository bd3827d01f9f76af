"""Which readouts a job needs, and which of them belong to which branch. Knows nothing of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from strata.engine.tree.prefix_tree import PrefixTree
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


def branches_of(prompts: Sequence[Prompt], chosen: Sequence[int]) -> np.ndarray:
    """Ascending global branch numbers of some prompts."""
    ends = np.cumsum([len(prompt.branches) for prompt in prompts])
    ranges = [np.arange(ends[index] - len(prompts[index].branches), ends[index]) for index in chosen]
    return np.concatenate(ranges)
