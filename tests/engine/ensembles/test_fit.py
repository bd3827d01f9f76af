"""Fitted weights: gradients and minima against scipy, and what they are worth on the other half."""

import json

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from strata.engine.ensembles.aligned import align_members
from strata.engine.ensembles.combine import Combination, combine_members, combine_scores, uniform
from strata.engine.ensembles.fit import fit_weights
from strata.engine.ensembles.pool_loss import pool_loss_of
from strata.engine.questions.metrics import evaluate
from strata.engine.types import InputError

from .planted_members import make_row, planted_members

POOLS = ["probabilities", "logits", "ranks"]


def with_gaps(members):
    """The members, each without some of its questions; the noise without two thirds."""
    return {
        name: [
            row for place, row in enumerate(rows) if place % 7 != number and (number != 1 or place % 3 == 0)
        ]
        for number, (name, rows) in enumerate(members.items())
    }


def slow_loss(members, weights, over):
    """Mean of minus the log-probability that the pool gives the answer, by `combine_scores`."""
    combination = Combination(over=over, weights=dict(zip(members, weights, strict=True)))
    return np.mean(
        [
            -combine_scores({n: r.scores for n, r in found.rows.items()}, combination)[found.question.answer]
            for found in align_members(members)
        ]
    )


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("over", POOLS)
def test_loss_and_gradient(over, gaps):
    members = planted_members(40, seed=0)
    members = with_gaps(members) if gaps else members
    loss = pool_loss_of(align_members(members), list(members), over)
    for weights in ([1 / 3, 1 / 3, 1 / 3], [0.6, 0.1, 0.3]):
        value, gradient = loss.value_and_gradient(np.array(weights))
        assert value == pytest.approx(slow_loss(members, weights, over), abs=1e-5)
        numeric = approx_fprime(np.array(weights), lambda w: loss.value_and_gradient(w)[0], 1e-7)
        assert gradient == pytest.approx(numeric, abs=1e-5)


@pytest.mark.parametrize("over", POOLS)
def test_no_weights_of_a_grid_are_better(over):
    members = planted_members(60, seed=1)
    fitted = fit_weights(members, over=over)
    assert fitted.is_fitted
    reached = slow_loss(members, fitted.combination.weights.values(), over)
    steps = 12
    grid = [
        (a / steps, b / steps, (steps - a - b) / steps)
        for a in range(steps + 1)
        for b in range(steps + 1 - a)
    ]
    # The fit leaves out weights below 0.001, which costs as much at the most.
    assert reached <= min(slow_loss(members, weights, over) for weights in grid) + 2e-3


@pytest.mark.parametrize("over", POOLS)
def test_fitted_on_one_half_they_help_on_the_other(over):
    members = planted_members(600, seed=2)
    first = {name: rows[:300] for name, rows in members.items()}
    second = {name: rows[300:] for name, rows in members.items()}
    fitted = fit_weights(first, over=over)
    weights = fitted.combination.weights
    assert fitted.is_fitted
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["noise"] < 0.1 < weights["complement"] < weights["good"]
    answers = [row.question.answer for row in second["good"]]

    def reached(combination):
        rows = combine_members(second, combination)
        nll = -np.mean([row.scores[answer] for row, answer in zip(rows, answers, strict=True)])
        return nll, evaluate(rows)["map_at_3"]

    nll, map_at_3 = reached(fitted.combination)
    uniform_nll, uniform_map = reached(uniform(list(members), over))
    good_nll, good_map = reached(Combination(over=over, weights={"good": 1, "noise": 0, "complement": 0}))
    assert nll < min(uniform_nll, good_nll)
    assert map_at_3 > max(uniform_map, good_map)
    # What cross-validation told beforehand is about what is reached.
    assert fitted.fitted.nll == pytest.approx(nll, abs=0.08)
    assert fitted.uniform.nll == pytest.approx(uniform_nll, abs=0.08)
    assert fitted.best_single.nll == pytest.approx(good_nll, abs=0.12)


def test_members_with_gaps():
    fitted = fit_weights(with_gaps(planted_members(300, seed=3)))
    assert fitted.is_fitted
    assert fitted.combination.weights["noise"] < fitted.combination.weights["complement"]


@pytest.mark.parametrize("has_own_question", [False, True])
def test_a_member_without_a_use_is_left_out_unless_it_is_all_a_question_has(has_own_question):
    """Else that question would be answered by weights that are 0."""
    right, wrong = [8.0, 0.0, 0.0], [0.0, 4.0, 4.0]
    members = {
        "good": [make_row(right, 0, str(number)) for number in range(40)],
        "bad": [make_row(wrong, 0, str(number)) for number in range(40)],
    }
    if has_own_question:
        members["bad"].append(make_row(wrong, 0, "its own"))
    found = fit_weights(members)
    assert found.is_fitted
    assert (found.combination.weights["bad"] > 0) == has_own_question


def test_equal_weights_where_fitted_ones_are_no_better():
    """Members that are equal but for chance: what is fitted to their noise is worse on other questions."""
    generator = np.random.default_rng(0)
    members = {name: [] for name in "abcdef"}
    for number in range(24):
        answer = int(generator.integers(4))
        for rows in members.values():
            rows.append(make_row(np.eye(4)[answer] + generator.normal(size=4), answer, str(number)))
    fitted = fit_weights(members)
    assert not fitted.is_fitted
    assert fitted.fitted.nll >= fitted.uniform.nll
    assert fitted.combination == uniform(list(members))
    assert fitted.reason.startswith("equal weights: fitted ones are no better")


def test_the_seed_decides_and_json_holds_it():
    members = planted_members(60, seed=4)
    assert fit_weights(members, seed=1) == fit_weights(members, seed=1)
    assert fit_weights(members, seed=1).fitted != fit_weights(members, seed=2).fitted
    told = json.loads(json.dumps(fit_weights(members).as_dict()))
    assert set(told["members"]) == set(members)
    assert told["fitted"].keys() == {"nll", "accuracy", "map_at_3"}


def test_one_member_and_one_question():
    lone = fit_weights({"a": planted_members(10, seed=5)["good"]})
    assert (lone.combination.weights, lone.is_fitted, lone.reason) == ({"a": 1.0}, False, "one member")
    assert lone.uniform == lone.best_single == lone.members["a"]
    single = fit_weights({name: rows[:1] for name, rows in planted_members(1, seed=5).items()})
    assert not single.is_fitted
    assert "too few to cross-validate" in single.reason


@pytest.mark.parametrize("over", POOLS)
@pytest.mark.parametrize("scores", [[9.0, 0], [0, 9.0], [1.0, 1], [-np.inf, 0], [0, -np.inf]])
def test_all_alike(over, scores):
    """All right, all wrong, ties, an answer of probability 0, and one of probability 1."""
    rows = [make_row(scores, 0, str(number)) for number in range(6)]
    fitted = fit_weights({"a": rows, "b": rows}, over=over)
    assert sum(fitted.combination.weights.values()) == pytest.approx(1)
    assert np.isfinite(fitted.uniform.nll)


def test_an_impossible_answer_of_one_member():
    good = planted_members(30, seed=6)["good"]
    sure = [make_row([0.0] + [-np.inf] * (len(r.scores) - 1), r.question.answer, r.question.id) for r in good]
    for over in POOLS:
        fitted = fit_weights({"good": good, "sure": sure}, over=over)
        assert fitted.combination.weights["good"] > 0.8


def test_what_cannot_be_fitted():
    rows = planted_members(3, seed=0)["good"]
    with pytest.raises(InputError, match="folds: 1; expected at least 2"):
        fit_weights({"a": rows}, folds=1)
    with pytest.raises(InputError, match="member 'b' has no answered question"):
        fit_weights({"a": rows, "b": [make_row([0.0, 1.0], question_id="other")]})
    with pytest.raises(InputError, match="no member"):
        fit_weights({})
