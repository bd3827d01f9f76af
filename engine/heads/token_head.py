"""What heads on label or option tokens share: they sum the log-probabilities of each branch's targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from strata.engine.heads.head import ReadingCosts, Readings
from strata.engine.tree.targets import TargetTable
from strata.engine.types import Prompt, QuestionScores


class TokenHead(ABC):
    """The part of a head on tokens that does not depend on what the tokens say."""

    def weight_shapes(self, hidden_size: int) -> tuple[tuple[int, int], ...]:
        """None: the vocabulary projection is all the weights there are."""
        return ()

    def normalizes(self, targets: TargetTable) -> bool:
        """Log-probabilities are needed, unless a head knows better."""
        return True

    def bytes_read(self, targets: TargetTable, costs: ReadingCosts, *, normalized: bool) -> int:
        """The projection, or its rows for the targets' tokens."""
        return costs.vocabulary_bytes(targets.token_ids, normalized=normalized)

    def score(
        self, prompts: Sequence[Prompt], targets: TargetTable, readings: Readings
    ) -> list[QuestionScores]:
        """Scores of questions from the sums of their branches' log-probabilities."""
        weights = readings.log_probabilities()
        branch_scores = np.bincount(targets.branches, weights=weights, minlength=targets.num_branches)
        ends = np.cumsum([len(prompt.branches) for prompt in prompts], dtype=np.int64)
        per_prompt = np.split(branch_scores, ends)[:-1]
        return [self.score_prompt(prompt, sums) for prompt, sums in zip(prompts, per_prompt, strict=True)]

    @abstractmethod
    def score_prompt(self, prompt: Prompt, branch_scores: np.ndarray) -> QuestionScores:
        """Scores of one question, from the summed log-probability [B] of each of its branches."""
