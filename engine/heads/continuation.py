"""The log-likelihood of one continuation a prompt, and whether greedy decoding would write it.

Not a head of `--head`: it scores pairs of texts, not questions. See `Scorer.log_likelihoods`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from strata.engine.heads.debiasing.debias import Order
from strata.engine.heads.head import Draft, Pen, ReadingCosts, Readings
from strata.engine.tree.targets import TargetTable
from strata.engine.types import Prompt, Question, QuestionScores

IS_GREEDY = "is_greedy"
"""Name of the member score [1] that is 1 where every token is the most probable one, else 0."""


class Continuation:
    """Sums the log-probabilities of a prompt's targets; see `Head`."""

    name = "continuation"
    template = ""
    needs: Literal["option", "options"] = "option"
    forbids: Literal["option"] | None = None
    numbers_options = False

    def weight_shapes(self, hidden_size: int) -> tuple[tuple[int, int], ...]:
        """None: it reads the vocabulary projection."""
        return ()

    def normalizes(self, targets: TargetTable) -> bool:
        """Log-probabilities are what is asked for."""
        return True

    def write_drafts(
        self, pen: Pen, question: Question, context: str, *, orders: Sequence[Order]
    ) -> list[Draft]:
        """Has no texts of its own."""
        raise NotImplementedError("continuations come as pairs of texts, not as questions")

    def bytes_read(self, targets: TargetTable, costs: ReadingCosts, *, normalized: bool) -> int:
        """The whole projection."""
        return costs.vocabulary_bytes(targets.token_ids, normalized=normalized)

    def score(
        self, prompts: Sequence[Prompt], targets: TargetTable, readings: Readings
    ) -> list[QuestionScores]:
        """For every prompt the sum [1] in nats, and under IS_GREEDY whether it is the greedy one."""
        found, greedy = readings.log_probabilities(), readings.are_most_probable()
        sums = np.bincount(targets.branches, weights=found, minlength=targets.num_branches)
        misses = np.bincount(targets.branches, weights=~greedy, minlength=targets.num_branches)
        return [
            QuestionScores(
                question=prompt.question,
                scores=np.array([total]),
                probabilities=np.ones(1),
                member_scores={IS_GREEDY: np.array([float(missed == 0)])},
            )
            for prompt, total, missed in zip(prompts, sums, misses, strict=True)
        ]


CONTINUATION = Continuation()
