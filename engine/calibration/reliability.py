"""How far probabilities can be trusted, where answers are known. Knows no calibration.

Each formula takes AnsweredScores, so questions may differ in their numbers of options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strata.engine.calibration.answered import AnsweredScores, answered_scores
from strata.engine.types import QuestionScores

NUM_BINS = 15
"""As in Guo et al. 2017."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Questions whose top probability lies in (lower, upper]; the first bin includes 0."""

    lower: float
    upper: float
    mean_confidence: float
    accuracy: float
    count: int


def negative_log_likelihood(answered: AnsweredScores) -> float:
    """Mean of -log p(answer) in nats, also called log loss or cross-entropy.

    An answer of probability 0 counts as the smallest normal float64: 708 nats.
    """
    return float(-answered.of_answers.mean())


def brier_score(answered: AnsweredScores) -> float:
    """Mean over questions of the sum over options of (p - y)^2, y = 1 for the answer, else 0: from 0 to 2.

    Source: Brier 1950, Verification of forecasts expressed in terms of probability.
    """
    errors = answered.probabilities.copy()
    errors[np.arange(len(errors)), answered.answers] -= 1
    return float((errors**2).sum(axis=1).mean())


def reliability_curve(answered: AnsweredScores, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """Accuracy beside mean confidence, by bins of confidence; bins without a question are left out.

    Confidence is the top probability. Bin m of M, m = 1..M, is ((m - 1) / M, m / M]: equal widths, whatever
    is in them. Source: Guo et al. 2017, On calibration of modern neural networks, section 2.
    """
    confidences = np.minimum(answered.probabilities.max(axis=1), 1.0)
    edges = np.arange(num_bins + 1) / num_bins
    bins = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, None)
    return [
        ReliabilityBin(
            lower=float(edges[place]),
            upper=float(edges[place + 1]),
            mean_confidence=float(confidences[bins == place].mean()),
            accuracy=float(answered.is_right[bins == place].mean()),
            count=int((bins == place).sum()),
        )
        for place in np.unique(bins)
    ]


def expected_calibration_error(answered: AnsweredScores, num_bins: int = NUM_BINS) -> float:
    """Mean over questions of their bin's |accuracy - mean confidence|: 0..1.

    ECE = sum over bins of count / Q * |accuracy - mean confidence|, bins as in `reliability_curve`.
    Source: Guo et al. 2017, equation 3.
    """
    curve = reliability_curve(answered, num_bins)
    gaps = [bin_.count * abs(bin_.accuracy - bin_.mean_confidence) for bin_ in curve]
    return sum(gaps) / len(answered.answers)


def describe_reliability(rows: Sequence[QuestionScores], num_bins: int = NUM_BINS) -> dict:
    """All of it, of the questions whose answer is known.

    Returns:
        num_answered, nll, brier, ece and curve [ReliabilityBin].

    Raises:
        InputError: no answer is known.
    """
    answered = answered_scores(rows)
    return {
        "num_answered": len(answered.answers),
        "nll": negative_log_likelihood(answered),
        "brier": brier_score(answered),
        "ece": expected_calibration_error(answered, num_bins),
        "curve": reliability_curve(answered, num_bins),
    }
