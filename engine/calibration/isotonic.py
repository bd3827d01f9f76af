"""Isotonic calibration of the best option's probability; the other options follow by a temperature.

A non-decreasing function of the top probability is fitted to whether the best option is right (pool adjacent
violators, scikit-learn) and read with linear interpolation. A question then gets the temperature at which its
top probability is that value. Only the top is mapped, not each option against the rest: that would make ties
of all options on one step, and their margins 0. Sources: Zadrozny and Elkan 2002, Transforming classifier
scores into accurate multiclass probability estimates; Gupta and Ramdas 2022, Top-label calibration and
multiclass-to-binary reductions; Rahimi et al. 2020, Intra order-preserving functions for calibration.

How order and probabilities above 0 are kept:
- a temperature reorders nothing; it is kept within COLDEST..WARMEST, so that a value at or below one over the
  number of options, which no temperature reaches, gives all but equal probabilities;
- the map's values are kept within 1 / (n + 2) .. (n + 1) / (n + 2), Laplace's rule after n questions;
- a probability of 0 counts as the smallest normal float64;
- a question whose best options tie keeps its probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from strata.engine.calibration.answered import (
    MIN_LOG_PROBABILITY,
    AnsweredScores,
    keep_order,
    log_softmax_rows,
)
from strata.engine.json_files import Schema, check_schema
from strata.engine.types import InputError

COLDEST = 0.01
WARMEST = 1e5
"""Temperatures: the warmest brings even MIN_LOG_PROBABILITY to within 1% of the best."""


class IsotonicSchema(Schema):
    """What `IsotonicTop.as_dict` gives: points of a rising line."""

    method: Literal["isotonic"]
    confidences: list[float] = Field(min_length=1)
    accuracies: list[float] = Field(min_length=1)
    num_questions: int = Field(ge=1)

    @model_validator(mode="after")
    def _check_points(self) -> IsotonicSchema:
        if len(self.confidences) != len(self.accuracies):
            raise ValueError("confidences and accuracies should be of equal length")
        if (np.diff(self.confidences) < 0).any() or (np.diff(self.accuracies) < 0).any():
            raise ValueError("confidences and accuracies should not fall")
        if not 0 < self.accuracies[0] <= self.accuracies[-1] < 1:
            raise ValueError("accuracies should be above 0 and below 1")
        return self


@dataclass(frozen=True, kw_only=True)
class IsotonicTop:
    """A line through (confidence, accuracy) points, constant beyond its ends.

    Attributes:
        confidences: top probabilities, rising.
        accuracies: what each becomes, never falling, above 0 and below 1.
        num_questions: what it was fitted on.
    """

    method: ClassVar[str] = "isotonic"
    confidences: tuple[float, ...]
    accuracies: tuple[float, ...]
    num_questions: int

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated log-probabilities [O] of scores [O], in the same order, all above probability 0."""
        values = np.asarray(scores, dtype=np.float64)
        log_probabilities = np.maximum(log_softmax_rows(values), MIN_LOG_PROBABILITY)
        if len(values) > 1 and (values == values.max()).sum() == 1:
            wanted = np.interp(np.exp(log_probabilities.max()), self.confidences, self.accuracies)
            temperature = temperature_for(log_probabilities, float(wanted))
            log_probabilities = log_probabilities / temperature
        mapped = np.maximum(log_softmax_rows(log_probabilities), MIN_LOG_PROBABILITY)
        return keep_order(values, mapped)

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values, from which `from_dict` makes an equal object."""
        return {
            "method": self.method,
            "confidences": list(self.confidences),
            "accuracies": list(self.accuracies),
            "num_questions": self.num_questions,
        }

    @classmethod
    def from_dict(cls, content: object, where: str) -> IsotonicTop:
        """The object of what `as_dict` gave; InputError names `where` and the key that does not fit."""
        read = check_schema(IsotonicSchema, content, where)
        return cls(
            confidences=tuple(read.confidences),
            accuracies=tuple(read.accuracies),
            num_questions=read.num_questions,
        )


def temperature_for(log_probabilities: np.ndarray, top_probability: float) -> float:
    """The temperature that gives the best option this probability, or the bound that comes nearest.

    Args:
        log_probabilities: [O] finite.
        top_probability: 0..1, of the best option; it falls as the temperature rises.
    """
    from scipy.optimize import brentq

    behind = log_probabilities - log_probabilities.max()

    def excess(log_temperature: float) -> float:
        return float(1 / np.exp(behind / np.exp(log_temperature)).sum() - top_probability)

    coldest, warmest = np.log(COLDEST), np.log(WARMEST)
    if excess(coldest) <= 0:
        return COLDEST
    if excess(warmest) >= 0:
        return WARMEST
    return float(np.exp(brentq(excess, coldest, warmest, xtol=1e-12)))


def require_scikit_learn() -> None:
    """Raises InputError where scikit-learn, which fits isotonic maps, is not installed."""
    try:
        import sklearn.isotonic  # noqa: F401
    except ImportError:
        raise InputError(
            'isotonic calibration needs scikit-learn; expected pip install "strata-score[calibration]"'
        ) from None


def fit_isotonic(answered: AnsweredScores) -> IsotonicTop:
    """Fits the map on the questions that have at least two options.

    Raises:
        InputError: scikit-learn is not installed, or every question has one option.
    """
    require_scikit_learn()
    from sklearn.isotonic import IsotonicRegression

    taking_part = answered.num_options > 1
    num_questions = int(taking_part.sum())
    if num_questions == 0:
        raise InputError("an isotonic calibration cannot be fitted: no question has two options")
    regression = IsotonicRegression(
        y_min=1 / (num_questions + 2), y_max=(num_questions + 1) / (num_questions + 2)
    )
    confidences = answered.probabilities.max(axis=1)[taking_part]
    regression.fit(confidences, answered.is_right[taking_part].astype(np.float64))
    return IsotonicTop(
        confidences=tuple(regression.X_thresholds_.tolist()),
        accuracies=tuple(regression.y_thresholds_.tolist()),
        num_questions=num_questions,
    )
