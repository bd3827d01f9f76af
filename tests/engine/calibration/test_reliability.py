"""Each measure against scikit-learn where all questions have one size, and against a slow loop where not."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from strata.engine.calibration.answered import answered_scores, pad_scores
from strata.engine.calibration.reliability import (
    brier_score,
    describe_reliability,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
)
from strata.engine.types import InputError

from .planted_scores import make_row, planted_rows


def test_like_scikit_learn():
    rows = planted_rows(300, seed=0, boldness=2.0, sizes=(5,))
    answered = answered_scores(rows)
    answers = [row.question.answer for row in rows]
    probabilities = np.array([row.probabilities for row in rows])
    assert negative_log_likelihood(answered) == pytest.approx(
        log_loss(answers, probabilities, labels=range(5))
    )
    by_halves = brier_score_loss(answers, probabilities, labels=range(5), scale_by_half=False)
    assert brier_score(answered) == pytest.approx(by_halves)


def slow_measures(rows, num_bins):
    """NLL, Brier score and ECE, one question and one option after another."""
    nll = brier = 0.0
    bins = [[] for _ in range(num_bins)]
    for row in rows:
        nll -= math.log(row.probabilities[row.question.answer])
        for option, probability in enumerate(row.probabilities):
            brier += (probability - (option == row.question.answer)) ** 2
        confidence = max(row.probabilities)
        for place in range(num_bins):
            if place / num_bins < confidence <= (place + 1) / num_bins:
                bins[place].append((confidence, row.order[0] == row.question.answer))
    ece = sum(abs(sum(right for _, right in found) - sum(sure for sure, _ in found)) for found in bins)
    return nll / len(rows), brier / len(rows), ece / len(rows)


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_ragged_questions_like_a_slow_loop(num_bins):
    rows = planted_rows(200, seed=1, boldness=3.0)
    answered = answered_scores([*rows, make_row([0.0, 1.0])])
    found = (
        negative_log_likelihood(answered),
        brier_score(answered),
        expected_calibration_error(answered, num_bins),
    )
    assert found == pytest.approx(slow_measures(rows, num_bins))


def test_the_curve_counts_every_question_once_and_names_its_bins():
    rows = [
        make_row(np.log([0.7, 0.3]), 0),
        make_row(np.log([0.65, 0.35]), 1),
        make_row(np.log([1, 1e-300]), 0),
    ]
    low, high = reliability_curve(answered_scores(rows), num_bins=10)
    assert (low.lower, low.upper, low.accuracy, low.count) == (0.6, 0.7, 0.5, 2)
    assert low.mean_confidence == pytest.approx(0.675)
    assert (high.lower, high.upper, high.accuracy, high.count) == (0.9, 1.0, 1.0, 1)


def test_true_probabilities_are_calibrated_and_bold_ones_are_not():
    honest = describe_reliability(planted_rows(4000, seed=2))
    bold = describe_reliability(planted_rows(4000, seed=2, boldness=3.0))
    assert honest["ece"] < 0.03 < 0.1 < bold["ece"]
    assert honest["nll"] < bold["nll"]
    assert honest["brier"] < bold["brier"]


def test_all_right_all_wrong_and_impossible():
    sure = pad_scores([np.array([0.0, -np.inf])] * 2, [0, 0])
    assert (negative_log_likelihood(sure), brier_score(sure), expected_calibration_error(sure)) == (0, 0, 0)
    wrong = pad_scores([np.array([0.0, -np.inf])], [1])
    assert negative_log_likelihood(wrong) == pytest.approx(708.396, abs=1e-3)
    assert (brier_score(wrong), expected_calibration_error(wrong)) == (2, 1)


def test_what_cannot_be_measured():
    with pytest.raises(InputError, match="known answer"):
        describe_reliability([make_row([0.0, 1.0])])
    with pytest.raises(ValueError, match="one answer a question"):
        pad_scores([np.zeros(2)], [0, 1])
    with pytest.raises(ValueError, match="not one of"):
        pad_scores([np.zeros(2), np.zeros(3)], [2, 2])
    for bad in ([np.nan, 0.0], [-np.inf, -np.inf], [np.inf, 0.0]):
        with pytest.raises(ValueError, match="at least one of them finite"):
            pad_scores([np.array(bad)], [0])
