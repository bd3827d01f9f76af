"""Metrics against figures worked out by hand, by enumeration, and on the competition's own questions."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from strata.engine.questions.metrics import (
    accuracy,
    evaluate,
    longest_option_order,
    map_at_k,
    uniform_map_at_3,
)
from strata.engine.types import Question, QuestionScores

KAGGLE_TRAIN = Path(__file__).parents[3].parent / "shared" / "data" / "kaggle_train.csv"


def make_row(scores, answer, options=None):
    values = np.array(scores, dtype=float)
    question = Question(id="1", prompt="p", options=options or ("x",) * len(scores), answer=answer)
    return QuestionScores(question=question, scores=values, probabilities=np.exp(values))


def test_map_counts_the_first_three_only():
    orders = [(0, 1, 2, 3)] * 4
    assert map_at_k(orders, [0, 1, 2, 3]) == pytest.approx((1 + 1 / 2 + 1 / 3 + 0) / 4)
    assert map_at_k(orders, [0, 1, 2, 3], k=4) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert accuracy(orders, [0, 1, 2, 3]) == 0.25


def test_map_of_short_orders():
    assert map_at_k([(1, 0), (1,)], [0, 0]) == 0.25


@pytest.mark.parametrize(("orders", "answers"), [([], []), ([(0, 1)], [0, 1])])
def test_map_refuses_nothing_and_unequal_lengths(orders, answers):
    with pytest.raises(ValueError, match="expected one answer an order"):
        map_at_k(orders, answers)


@pytest.mark.parametrize("num_options", [1, 2, 3, 4, 5, 6])
def test_uniform_guess_is_the_mean_over_all_orders(num_options):
    orders = list(itertools.permutations(range(num_options)))
    assert uniform_map_at_3([num_options]) == pytest.approx(map_at_k(orders, [0] * len(orders)))


def test_uniform_guess_averages_over_questions():
    assert uniform_map_at_3([5] * 7) == pytest.approx(0.367, abs=5e-4)
    assert uniform_map_at_3([5, 2]) == pytest.approx((11 / 30 + 3 / 4) / 2)
    with pytest.raises(ValueError, match="at least one question"):
        uniform_map_at_3([])


def test_longest_option_first_and_ties_in_place():
    question = Question(id="1", prompt="p", options=("bb", "a", "cc", "dddd", ""))
    assert longest_option_order(question) == (3, 0, 2, 1, 4)


def test_evaluate_uses_questions_with_an_answer_only():
    rows = [
        make_row([3, 2, 1], 1, ("a", "bb", "ccc")),
        make_row([1, 2], 1, ("aa", "b")),
        make_row([9, 1], None),
    ]
    assert evaluate(rows) == {
        "num_answered": 2,
        "map_at_3": pytest.approx((1 / 2 + 1) / 2),
        "accuracy": 0.5,
        "heuristics": {
            "uniform_map_at_3": pytest.approx((11 / 18 + 3 / 4) / 2),
            "longest_option_map_at_3": pytest.approx((1 / 2 + 1 / 2) / 2),
        },
    }


def test_evaluate_without_answers():
    assert evaluate([make_row([1, 2], None)]) is None
    assert evaluate([]) is None


@pytest.mark.skipif(not KAGGLE_TRAIN.exists(), reason="needs the shared data")
def test_heuristics_on_the_competition_questions():
    with KAGGLE_TRAIN.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    letters = "ABCDE"
    scores = [
        make_row([0] * 5, letters.index(row["answer"]), tuple(row[letter] for letter in letters))
        for row in rows
    ]
    heuristics = evaluate(scores)["heuristics"]
    # 0.5825 exactly, which the data's own page gives as 0.582.
    assert heuristics["longest_option_map_at_3"] == pytest.approx(0.5825, abs=1e-9)
    assert heuristics["uniform_map_at_3"] == pytest.approx(0.367, abs=5e-4)
