"""Scores of answered questions side by side, of any numbers of options; and the order that a map keeps.

Knows no calibration. Legend: Q questions, O options of the question that has most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from strata.engine.types import InputError, QuestionScores

MIN_LOG_PROBABILITY = float(np.log(np.finfo(np.float64).tiny))
"""-708.4 nats: what a probability of 0 counts as, so that one such answer leaves a mean finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AnsweredScores:
    """Answered questions in arrays; what a question lacks to O options is minus infinity.

    Attributes:
        log_probabilities: [Q, O] float64, each row the log-softmax of a question's scores.
        answers: [Q] int64 index of the right option.
        best: [Q] int64 index of the option of the highest score; of options that tie, the first.
        num_options: [Q] int64.
    """

    log_probabilities: np.ndarray
    answers: np.ndarray
    best: np.ndarray
    num_options: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """[Q, O], each row summing to 1."""
        return np.exp(self.log_probabilities)

    @property
    def is_right(self) -> np.ndarray:
        """[Q] whether the best option is the answer."""
        return self.best == self.answers

    @property
    def of_answers(self) -> np.ndarray:
        """[Q] log-probability of the answer, at least MIN_LOG_PROBABILITY."""
        found = np.take_along_axis(self.log_probabilities, self.answers[:, None], axis=1)[:, 0]
        return np.maximum(found, MIN_LOG_PROBABILITY)


def pad_scores(scores: Sequence[np.ndarray], answers: Sequence[int]) -> AnsweredScores:
    """Puts questions of different sizes side by side.

    Args:
        scores: [Q] of [O] log-probabilities or logits, each its own O; minus infinity is probability 0.
        answers: [Q] index of the right option.

    Raises:
        InputError: there is no question.
        ValueError: numbers differ, an answer is no option, a score is NaN or plus infinity, or all of a
            question's are minus infinity.
    """
    if not scores:
        raise InputError("no question with a known answer; expected at least one")
    if len(scores) != len(answers):
        raise ValueError(f"expected one answer a question; got {len(answers)} for {len(scores)}")
    num_options = np.array([len(row) for row in scores])
    padded = np.full((len(scores), num_options.max()), -np.inf)
    for place, row in enumerate(scores):
        padded[place, : len(row)] = row
    indexes = np.array(answers, dtype=np.int64)
    if ((indexes < 0) | (indexes >= num_options)).any():
        raise ValueError("an answer is not one of its question's options")
    if not np.isfinite(padded.max(axis=1)).all():
        raise ValueError("expected one number an option, at least one of them finite")
    return AnsweredScores(
        log_probabilities=log_softmax_rows(padded),
        answers=indexes,
        best=padded.argmax(axis=1),
        num_options=num_options,
    )


def answered_scores(rows: Sequence[QuestionScores]) -> AnsweredScores:
    """What a run says of the questions whose answer is known; the others are left out.

    Raises:
        InputError: no answer is known.
    """
    answered = [(row.scores, row.question.answer) for row in rows if row.question.answer is not None]
    return pad_scores([scores for scores, _ in answered], [answer for _, answer in answered])


def log_softmax_rows(values: np.ndarray) -> np.ndarray:
    """Log-softmax [..., O] over the last axis; each row has a finite value, others may be minus infinity."""
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def keep_order(scores: np.ndarray, mapped: np.ndarray) -> np.ndarray:
    """Mapped scores in which options order as in the scores, even where rounding made two of them one.

    A map that never swaps options may still make a tie of two by rounding, and a tie is ordered by place. So
    each option's value becomes the next smaller number where it is not below that of a better option.

    Args:
        scores: [O] before the map; equal scores stay equal.
        mapped: [O] after it, in the same order up to ties.

    Returns:
        [O] float64; values differ from `mapped` in their last digits, if at all.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.array(mapped, dtype=np.float64)
    for better, option in pairwise(order):
        if scores[option] == scores[better]:
            kept[option] = kept[better]
        else:
            kept[option] = min(kept[option], np.nextafter(kept[better], -np.inf))
    return kept
