"""Temperature and isotonic maps: against a grid and scikit-learn, on questions they were not fitted on."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from strata.engine.calibration.answered import answered_scores
from strata.engine.calibration.isotonic import IsotonicTop
from strata.engine.calibration.registry import FITS, calibrate, fit_calibration, read_calibration
from strata.engine.calibration.reliability import describe_reliability
from strata.engine.calibration.temperature import TemperatureScaling
from strata.engine.types import InputError

from .planted_scores import make_row, planted_rows

METHODS = list(FITS)


def test_the_temperature_is_the_planted_one_and_the_best_of_a_grid():
    rows = planted_rows(4000, seed=0, boldness=2.5)
    fitted = fit_calibration("temperature", rows)
    assert fitted.temperature == pytest.approx(2.5, rel=0.06)

    def loss(temperature):
        scaled = [row.scores / temperature for row in rows]
        return np.mean(
            [np.logaddexp.reduce(s) - s[row.question.answer] for s, row in zip(scaled, rows, strict=True)]
        )

    assert loss(fitted.temperature) <= min(loss(grid) for grid in np.geomspace(0.5, 10, 200)) + 1e-9


def test_isotonic_reads_as_scikit_learn_predicts():
    rows = planted_rows(500, seed=1, boldness=3.0)
    answered = answered_scores(rows)
    confidences, right = answered.probabilities.max(axis=1), answered.is_right.astype(float)
    expected = IsotonicRegression(y_min=1 / 502, y_max=501 / 502).fit(confidences, right).predict(confidences)
    tops = [row.probabilities.max() for row in calibrate(fit_calibration("isotonic", rows), rows)]
    # No temperature makes the best of O options less probable than 1 / O, nor two that all but tie differ.
    free = expected > 1.05 / answered.num_options
    assert free.mean() > 0.9
    close = np.isclose(np.array(tops)[free], expected[free], atol=1e-8)
    assert close.mean() > 0.98


@pytest.mark.parametrize("method", METHODS)
def test_fitted_on_one_half_it_helps_on_the_other(method):
    rows = planted_rows(3000, seed=2, boldness=3.0)
    fitted = fit_calibration(method, rows[:1500])
    before, after = describe_reliability(rows[1500:]), describe_reliability(calibrate(fitted, rows[1500:]))
    assert after["nll"] < before["nll"] - 0.3
    assert after["brier"] < before["brier"] - 0.03
    assert after["ece"] < before["ece"] / 3


SCORES = st.lists(
    st.one_of(
        st.floats(-1e6, 1e6),
        st.sampled_from([0.0, 5e-324, -1.0, np.nextafter(-1.0, 0), -700.0, -np.inf]),
    ),
    min_size=1,
    max_size=6,
).filter(lambda scores: np.isfinite(max(scores)))
MAPS = st.one_of(
    st.floats(0.01, 100).map(lambda value: TemperatureScaling(temperature=value, num_questions=1)),
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5).map(
        lambda values: IsotonicTop(
            confidences=tuple(np.linspace(0.2, 1, len(values))),
            accuracies=tuple(sorted(values)),
            num_questions=1,
        )
    ),
)


@settings(deadline=None, max_examples=500)
@given(scores=SCORES, calibration=MAPS)
def test_options_keep_their_order_and_probabilities_their_sum(scores, calibration):
    row = make_row(scores, 0)
    (calibrated,) = calibrate(calibration, [row])
    assert not np.isnan(calibrated.scores).any()
    assert calibrated.order == row.order
    is_tie = np.equal.outer(row.scores, row.scores)
    assert (np.equal.outer(calibrated.scores, calibrated.scores) == is_tie).all()
    assert calibrated.probabilities.sum() == pytest.approx(1)
    if isinstance(calibration, IsotonicTop):
        assert np.isfinite(calibrated.scores).all()
    else:
        assert (np.isfinite(calibrated.scores) == np.isfinite(row.scores)).all()


@pytest.mark.parametrize("method", METHODS)
def test_it_survives_json(method):
    fitted = fit_calibration(method, planted_rows(50, seed=3))
    assert read_calibration(json.loads(json.dumps(fitted.as_dict())), "c.json") == fitted


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"method": "platt"}, "c.json: method: 'platt'; expected temperature or isotonic"),
        ([], "method: .*; expected temperature or isotonic"),
        (
            {"method": "temperature", "temperature": 0.0, "num_questions": 3},
            "c.json: temperature: .*greater than 0",
        ),
        ({"method": "temperature", "num_questions": 3}, "c.json: temperature: field required"),
        (
            {"method": "isotonic", "confidences": [0.5, 0.2], "accuracies": [0.1, 0.2], "num_questions": 2},
            "should not fall",
        ),
        (
            {"method": "isotonic", "confidences": [0.5], "accuracies": [1.0], "num_questions": 2},
            "above 0 and below 1",
        ),
        (
            {"method": "isotonic", "confidences": [0.5], "accuracies": [0.1, 0.2], "num_questions": 2},
            "equal length",
        ),
    ],
)
def test_json_that_does_not_fit(content, told):
    with pytest.raises(InputError, match=told) as caught:
        read_calibration(content, "c.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("answer", [0, 2])
@pytest.mark.parametrize("num_questions", [1, 20])
def test_all_right_or_all_wrong(method, answer, num_questions):
    rows = [make_row([2.0, 1.0, 0.0], answer)] * num_questions
    (calibrated, *_) = calibrate(fit_calibration(method, rows), rows)
    assert calibrated.order == (0, 1, 2)
    assert (calibrated.probabilities[0] > rows[0].probabilities[0]) == (answer == 0)
    assert (calibrated.probabilities > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_ties_stay_as_they_are(method):
    rows = [make_row([1.0, 1.0, 1.0], answer) for answer in (0, 1, 2)]
    (calibrated, *_) = calibrate(fit_calibration(method, rows), rows)
    assert calibrated.probabilities == pytest.approx(1 / 3)


def test_answers_of_probability_0_take_no_part_in_the_temperature():
    rows = planted_rows(100, seed=4)
    impossible = make_row([0.0, -np.inf], 1)
    with_it = fit_calibration("temperature", [*rows, impossible])
    assert with_it.temperature == pytest.approx(fit_calibration("temperature", rows).temperature)
    with pytest.raises(InputError, match="every right answer has probability 0"):
        fit_calibration("temperature", [impossible])


def test_isotonic_takes_an_answer_of_probability_0_above_0():
    rows = [make_row([0.0, -np.inf], answer) for answer in (0, 1, 1, 1)]
    (calibrated, *_) = calibrate(fit_calibration("isotonic", rows), rows)
    assert 0.49 < calibrated.probabilities[1] < calibrated.probabilities[0] < 0.51


def test_what_cannot_be_fitted(monkeypatch):
    with pytest.raises(InputError, match="no question has two options"):
        fit_calibration("isotonic", [make_row([0.0], 0)])
    with pytest.raises(InputError, match="calibration: 'platt'; expected"):
        fit_calibration("platt", planted_rows(3, seed=0))
    monkeypatch.setitem(sys.modules, "sklearn.isotonic", None)
    with pytest.raises(InputError, match=r'pip install "strata-score\[calibration\]"'):
        fit_calibration("isotonic", planted_rows(3, seed=0))
