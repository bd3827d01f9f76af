"""Rules against figures by hand, scipy's entropy, and properties of every choice."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from strata.engine.ensembles.rules import (
    SelectionRule,
    count_taken,
    doubts,
    hardest_first,
    normalised_entropy,
    select_questions,
)
from strata.engine.types import InputError

from .planted_members import make_row

# Margins 0.4, 0.1, 0.0, 0.94; best 0.6, 0.45, 0.25, 0.97.
ROWS = [make_row(np.log(p)) for p in ([0.6, 0.2, 0.2], [0.45, 0.35, 0.2], [0.25] * 4, [0.03, 0.97])]


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        ({"margin_below": 0.5}, [2, 1, 0]),
        ({"margin_below": 0.05}, [2]),
        ({"margin_below": 0.0}, []),
        ({"probability_below": 0.5}, [2, 1]),
        ({"entropy_above": 0.9}, [2, 1]),
        ({"entropy_above": 1.0}, []),
        ({"least_sure": 0.0}, []),
        ({"least_sure": 0.3}, [2, 1]),
        ({"least_sure": 0.5, "by": "entropy"}, [2, 1]),
        ({"least_sure": 1.0, "by": "probability"}, [2, 1, 0, 3]),
    ],
)
def test_by_hand(rule, taken):
    assert select_questions(ROWS, SelectionRule(**rule)) == taken


def test_entropy_like_scipy_and_alike_for_all_sizes():
    generator = np.random.default_rng(0)
    for num_options in (2, 3, 7):
        probabilities = generator.dirichlet(np.ones(num_options))
        expected = entropy(probabilities) / np.log(num_options)
        assert normalised_entropy(probabilities) == pytest.approx(expected)
        assert normalised_entropy(np.full(num_options, 1 / num_options)) == pytest.approx(1)
    assert normalised_entropy(np.array([1.0, 0, 0])) == 0


def test_margins_by_hand():
    assert doubts(ROWS, "margin") == pytest.approx([-0.4, -0.1, 0.0, -0.94])


def test_one_option_is_sure():
    rows = [make_row([0.0]), make_row([5.0, 0.0])]
    assert rows[0].margin == 1
    for by in ("margin", "probability", "entropy"):
        assert hardest_first(doubts(rows, by)) == [1, 0]


def test_ties_keep_their_order_and_no_question_is_none():
    rows = [make_row([1.0, 0.0])] * 5
    assert select_questions(rows, SelectionRule(least_sure=0.5)) == [0, 1, 2]
    assert select_questions([], SelectionRule(least_sure=0.5)) == []
    assert select_questions([], SelectionRule(margin_below=0.5)) == []


@pytest.mark.parametrize(("share", "num", "taken"), [(0.07, 100, 7), (0.05, 9, 1), (0.4, 200, 80), (1, 3, 3)])
def test_counts(share, num, taken):
    assert count_taken(share, num) == taken


@settings(deadline=None)
@given(
    scores=st.lists(st.lists(st.floats(-50, 50), min_size=1, max_size=5), min_size=1, max_size=8),
    small=st.floats(0, 1),
    large=st.floats(0, 1),
    by=st.sampled_from(["margin", "probability", "entropy"]),
)
def test_larger_shares_take_the_same_first(scores, small, large, by):
    rows = [make_row(row) for row in scores]
    small, large = sorted((small, large))
    few = select_questions(rows, SelectionRule(least_sure=small, by=by))
    many = select_questions(rows, SelectionRule(least_sure=large, by=by))
    assert many[: len(few)] == few
    assert len(set(many)) == len(many)
    found = doubts(rows, by)
    assert all(found[one] >= found[two] for one, two in pairwise(many))


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({}, "a rule: nothing; expected one of margin_below"),
        ({"margin_below": 0.1, "least_sure": 0.1}, "a rule: margin_below and least_sure; expected one of"),
        ({"least_sure": 40.0}, "least_sure: 40.0; expected a number of 0 to 1"),
        ({"entropy_above": float("nan")}, "entropy_above: nan; expected a number of 0 to 1"),
        ({"least_sure": 0.1, "by": "luck"}, "by: 'luck'; expected margin, probability, entropy"),
    ],
)
def test_rules_that_are_none(rule, told):
    with pytest.raises(InputError, match=told):
        SelectionRule(**rule)
