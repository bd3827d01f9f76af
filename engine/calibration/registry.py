"""The calibrations by name: fitted on answered questions, kept as JSON, applied to what a run says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from strata.engine.calibration.answered import AnsweredScores, answered_scores
from strata.engine.calibration.isotonic import IsotonicTop, fit_isotonic
from strata.engine.calibration.temperature import TemperatureScaling, fit_temperature
from strata.engine.json_files import shown
from strata.engine.types import InputError, QuestionScores

Calibration: TypeAlias = TemperatureScaling | IsotonicTop

FITS: dict[str, Callable[[AnsweredScores], Calibration]] = {
    "temperature": fit_temperature,
    "isotonic": fit_isotonic,
}
KINDS: dict[str, type[TemperatureScaling] | type[IsotonicTop]] = {
    "temperature": TemperatureScaling,
    "isotonic": IsotonicTop,
}


def fit_calibration(method: str, rows: Sequence[QuestionScores]) -> Calibration:
    """Fits a calibration on the questions whose answer is known.

    Raises:
        InputError: there is no such method, no answer is known, or the method cannot be fitted on them.
    """
    return FITS[_known(method, "calibration")](answered_scores(rows))


def read_calibration(content: object, where: str) -> Calibration:
    """The calibration that `as_dict` described; InputError names `where` and the key that does not fit."""
    method = content.get("method") if isinstance(content, dict) else content
    return KINDS[_known(method, f"{where}: method")].from_dict(content, where)


def calibrate(calibration: Calibration, rows: Sequence[QuestionScores]) -> list[QuestionScores]:
    """The rows with calibrated log-probabilities as their scores; order and members' scores stay."""
    calibrated = []
    for row in rows:
        scores = calibration.apply(row.scores)
        calibrated.append(replace(row, scores=scores, probabilities=np.exp(scores)))
    return calibrated


def _known(method: object, what: str) -> str:
    if not isinstance(method, str) or method not in FITS:
        raise InputError(f"{what}: {shown(method)}; expected {' or '.join(FITS)}")
    return method
