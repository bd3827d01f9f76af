"""Whether a run prefers a position, told by how well it answers questions whose answer stands there.

Source of the standard deviation of recalls: Zheng et al. 2024 (ICLR), Large language models are not robust
multiple choice selectors, section 2.2. Their tables give it in percentage points; here all are fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strata.engine.types import InputError, QuestionScores


@dataclass(frozen=True, kw_only=True)
class PositionShare:
    """One position, among the answered questions that have so many options.

    Attributes:
        position: from 0.
        num_questions: questions that have it.
        num_gold: questions whose answer stands there.
        share_gold: num_gold / num_questions.
        share_answered: questions whose best option stands there / num_questions; without a bias about
            share_gold.
        recall: of those whose answer stands there, the share that is answered there, which is also the
            accuracy by gold position; None where no answer stands there.
    """

    position: int
    num_questions: int
    num_gold: int
    share_gold: float
    share_answered: float
    recall: float | None


@dataclass(frozen=True, kw_only=True)
class PositionBias:
    """All positions, and how far apart their recalls are.

    Attributes:
        positions: from the first to the last of the question that has most options.
        recall_std: population standard deviation of the recalls there are, a fraction: 0 is without bias, 0.5
            the most there can be.
    """

    positions: tuple[PositionShare, ...]
    recall_std: float


def measure_position_bias(rows: Sequence[QuestionScores]) -> PositionBias:
    """Measures it on the questions whose answer is known.

    Raises:
        InputError: no answer is known.
    """
    answered = [row for row in rows if row.question.answer is not None]
    if not answered:
        raise InputError("no question with a known answer; expected at least one to measure position bias on")
    num_options = np.array([len(row.scores) for row in answered])
    gold = np.array([row.question.answer for row in answered])
    best = np.array([row.order[0] for row in answered])
    positions = tuple(
        _share_of(position, gold[num_options > position], best[num_options > position])
        for position in range(num_options.max())
    )
    recalls = [share.recall for share in positions if share.recall is not None]
    return PositionBias(positions=positions, recall_std=float(np.std(recalls)))


def _share_of(position: int, gold: np.ndarray, best: np.ndarray) -> PositionShare:
    is_gold, is_best = gold == position, best == position
    return PositionShare(
        position=position,
        num_questions=len(gold),
        num_gold=int(is_gold.sum()),
        share_gold=float(is_gold.mean()),
        share_answered=float(is_best.mean()),
        recall=float(is_best[is_gold].mean()) if is_gold.any() else None,
    )
