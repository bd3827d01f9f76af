"""Way pride: what each place is worth, learned on a few questions and taken out of all others.

A sample of the questions is shown in every cyclic order. A place's prior is the softmax of its mean
log-probability over a question's orders (every option stands there once, so that options cancel), averaged
over the sample; there is one for each number of options. The other questions are shown in the stated order
only, and the prior's logarithm is subtracted from their log-probabilities.

The prior is known when the sample is scored; until then `finish` leaves the others as observed. What it needs
is in each row: STATED_ORDER of all, BY_PLACE of the sample. So rows may come from several groups, or from the
file of an interrupted run.

Source: PriDe, in Zheng et al., "Large Language Models Are Not Robust Multiple Choice Selectors" (ICLR 2024).
Legend: O options of a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from strata.engine.heads.debias import BY_PLACE, STATED_ORDER, rotations
from strata.engine.heads.debiasing.debias import AskedHead, DebiasSettings, Order, stated_order
from strata.engine.heads.debiasing.permute import Stated
from strata.engine.heads.probabilities import average_probabilities, log_softmax
from strata.engine.types import Question, QuestionScores, RunWarnings

LEAST_SAMPLE = 16
"""Questions of each number of options that are sampled, or all where there are fewer."""


@dataclass(frozen=True, kw_only=True)
class Pride(Stated):
    """A sample in every cyclic order, the others in the stated one."""

    settings: DebiasSettings

    name = "pride"
    waits_for_all = True

    def suits(self, head: AskedHead) -> bool:
        """Heads that number the options."""
        return head.numbers_options

    def plan_orders(self, questions: Sequence[Question]) -> list[tuple[Order, ...]]:
        """Cyclic orders for the sample, which is drawn among the questions of each number of options."""
        sampled = self._draw_sample(questions)
        return [
            rotations(len(question.options)) if index in sampled else (stated_order(question),)
            for index, question in enumerate(questions)
        ]

    def finish(self, rows: Sequence[QuestionScores], warnings: RunWarnings) -> list[QuestionScores]:
        """Subtracts the prior from rows that are not of the sample; see `Debias.finish`."""
        priors = estimate_log_priors(rows)
        lost = [row for row in rows if len(row.scores) > 1 and len(row.scores) not in priors]
        if lost:
            warnings.say(
                f"--debias pride: {len(lost)} question(s) of "
                f"{', '.join(map(str, sorted({len(row.scores) for row in lost})))} options are scored in the "
                "stated order only: none of the sample has so many"
            )
        return [_subtract(row, priors) for row in rows]

    def _draw_sample(self, questions: Sequence[Question]) -> set[int]:
        by_size: dict[int, list[int]] = {}
        for index, question in enumerate(questions):
            by_size.setdefault(len(question.options), []).append(index)
        sampled: set[int] = set()
        for size, indexes in by_size.items():
            wanted = min(max(ceil(self.settings.sample * len(indexes)), LEAST_SAMPLE), len(indexes))
            generator = np.random.default_rng([self.settings.seed, size])
            sampled.update(generator.permutation(indexes)[:wanted].tolist())
        return sampled


def estimate_log_priors(rows: Iterable[QuestionScores]) -> dict[int, np.ndarray]:
    """Log-prior [O] of the places for every number of options that the sample has."""
    by_size: dict[int, list[np.ndarray]] = {}
    for row in rows:
        if BY_PLACE in row.member_scores:
            by_size.setdefault(len(row.scores), []).append(row.member_scores[BY_PLACE])
    return {size: average_probabilities(by_place) for size, by_place in by_size.items()}


def _subtract(row: QuestionScores, priors: Mapping[int, np.ndarray]) -> QuestionScores:
    if BY_PLACE in row.member_scores or len(row.scores) not in priors:
        return row
    observed = row.member_scores.get(STATED_ORDER, row.scores)
    scores = log_softmax(log_softmax(observed) - priors[len(row.scores)])
    return replace(
        row,
        scores=scores,
        probabilities=np.exp(scores),
        member_scores=row.member_scores | {STATED_ORDER: observed},
    )
