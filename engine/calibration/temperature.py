"""Temperature scaling: one number that makes all probabilities bolder or more modest, and reorders nothing.

Source: Guo et al. 2017, On calibration of modern neural networks, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from strata.engine.calibration.answered import (
    MIN_LOG_PROBABILITY,
    AnsweredScores,
    keep_order,
    log_softmax_rows,
)
from strata.engine.json_files import Schema, check_schema
from strata.engine.types import InputError

MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0
"""Where the search ends: answers that are all right would want 0, all wrong infinity."""


class TemperatureSchema(Schema):
    """What `TemperatureScaling.as_dict` gives."""

    method: Literal["temperature"]
    temperature: float = Field(gt=0)
    num_questions: int = Field(ge=1)


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """softmax(log p / T): T > 1 is more modest, T < 1 bolder.

    Attributes:
        temperature: T.
        num_questions: what it was fitted on.
    """

    method: ClassVar[str] = "temperature"
    temperature: float
    num_questions: int

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated log-probabilities [O] of scores [O], in the same order."""
        return keep_order(scores, log_softmax_rows(np.asarray(scores, dtype=np.float64) / self.temperature))

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values, from which `from_dict` makes an equal object."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            "num_questions": self.num_questions,
        }

    @classmethod
    def from_dict(cls, content: object, where: str) -> TemperatureScaling:
        """The object of what `as_dict` gave; InputError names `where` and the key that does not fit."""
        read = check_schema(TemperatureSchema, content, where)
        return cls(temperature=read.temperature, num_questions=read.num_questions)


def fit_temperature(answered: AnsweredScores) -> TemperatureScaling:
    """The temperature of least negative log-likelihood, in MIN_TEMPERATURE..MAX_TEMPERATURE.

    NLL is convex in 1/T, so it has one valley in log T, which Brent's bounded search finds. Questions whose
    answer has probability 0 at every temperature do not take part. Where no T is better than 1, T is 1.

    Raises:
        InputError: every answer has probability 0.
    """
    from scipy.optimize import minimize_scalar

    taking_part = answered.of_answers > MIN_LOG_PROBABILITY
    if not taking_part.any():
        raise InputError("a temperature cannot be fitted: every right answer has probability 0")
    log_probabilities = answered.log_probabilities[taking_part]
    answers = answered.answers[taking_part, None]

    def loss(log_temperature: float) -> float:
        scaled = log_softmax_rows(log_probabilities / np.exp(log_temperature))
        return float(-np.take_along_axis(scaled, answers, axis=1).mean())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    temperature = float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0
    return TemperatureScaling(temperature=temperature, num_questions=int(taking_part.sum()))
