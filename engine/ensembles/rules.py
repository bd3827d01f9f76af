"""Which questions a later stage takes: those a member is least sure of, by a rule. Knows no answers.

Legend: Q questions, O options. Measures of a question's probabilities p, all in 0..1: margin = p of the best
option minus p of the second; probability = p of the best; entropy = -sum of p log p, over log O, so that
questions of different sizes compare (Pielou's evenness: 0 sure, 1 no idea). A question of one option is sure
by all three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from strata.engine.json_files import shown
from strata.engine.types import InputError, QuestionScores

Measure = Literal["margin", "probability", "entropy"]


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """One of four ways to choose; the others are None.

    Attributes:
        margin_below: takes questions of a smaller margin.
        probability_below: takes questions whose best option has a smaller probability.
        entropy_above: takes questions of a larger entropy.
        least_sure: takes this share of all questions, rounded up to a whole question.
        by: what `least_sure` goes by.
    """

    margin_below: float | None = None
    probability_below: float | None = None
    entropy_above: float | None = None
    least_sure: float | None = None
    by: Measure = "margin"

    def __post_init__(self) -> None:
        limits = ("margin_below", "probability_below", "entropy_above", "least_sure")
        given = [name for name in limits if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"a rule: {' and '.join(given) or 'nothing'}; expected one of {', '.join(limits)}"
            )
        limit = getattr(self, given[0])
        if not 0 <= limit <= 1:
            raise InputError(f"{given[0]}: {limit}; expected a number of 0 to 1")
        if self.by not in get_args(Measure):
            raise InputError(f"by: {shown(self.by)}; expected {', '.join(get_args(Measure))}")


def select_questions(rows: Sequence[QuestionScores], rule: SelectionRule) -> list[int]:
    """Places of the questions that the rule takes, the least sure first; ties keep their order in `rows`."""
    if rule.least_sure is not None:
        hardest = hardest_first(doubts(rows, rule.by))
        return hardest[: count_taken(rule.least_sure, len(rows))]
    if rule.margin_below is not None:
        found, limit = doubts(rows, "margin"), -rule.margin_below
    elif rule.probability_below is not None:
        found, limit = doubts(rows, "probability"), -rule.probability_below
    else:
        assert rule.entropy_above is not None, "a rule has one limit"
        found, limit = doubts(rows, "entropy"), rule.entropy_above
    return [place for place in hardest_first(found) if found[place] > limit]


def count_taken(share: float, num_questions: int) -> int:
    """Questions in a share of them, rounded up; a product that is whole but for its last digit stays."""
    return math.ceil(share * num_questions - 1e-9)


def doubts(rows: Sequence[QuestionScores], by: Measure) -> np.ndarray:
    """[Q] float64, larger where a member is less sure: minus margin or probability, or the entropy."""
    doubt = {"margin": _minus_margin, "probability": _minus_probability, "entropy": _entropy}[by]
    return np.array([doubt(row) for row in rows], dtype=np.float64)


def hardest_first(found: np.ndarray) -> list[int]:
    """Places of doubts [Q], the largest first; ties keep their order."""
    return [int(place) for place in np.argsort(-found, kind="stable")]


def normalised_entropy(probabilities: np.ndarray) -> float:
    """Entropy of [O] probabilities over log O, in 0..1; 0 log 0 is 0, and so is the entropy of one option."""
    if len(probabilities) == 1:
        return 0.0
    some = probabilities[probabilities > 0]
    return float(-(some * np.log(some)).sum() / np.log(len(probabilities)))


def _minus_margin(row: QuestionScores) -> float:
    return -row.margin


def _minus_probability(row: QuestionScores) -> float:
    return -float(row.probabilities.max())


def _entropy(row: QuestionScores) -> float:
    return normalised_entropy(row.probabilities)
