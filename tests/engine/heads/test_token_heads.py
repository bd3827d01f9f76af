"""Heads on label and option tokens: from log-probabilities to scores, spelled out again with plain loops."""

import numpy as np
import pytest

from strata.engine.heads.letters import Letters
from strata.engine.heads.loglik import EMPTY_OPTION_PENALTY, LogLikelihood, with_normalization
from strata.engine.heads.yes_no import YesNo
from strata.engine.types import InputError, Prompt

from .scored_prompts import branch, prompt, score_by, table_of, yes_no_branches

NORMALIZATION = {
    "one token each at one readout": ([yes_no_branches(0, [1, 2]), yes_no_branches(1, [1, 3])], False),
    "two tokens of one label": ([yes_no_branches(0, [1, 2]), yes_no_branches(1, [1, 3], yes=(7, 6))], True),
    "two tokens of both": ([yes_no_branches(0, [1, 2], (7, 5), (8, 5))], True),
    "readouts at different tokens": (
        [[branch(0, [1, 2], [(2, 7)], "Yes"), branch(0, [1, 3], [(2, 8)], "No")]],
        True,
    ),
}


@pytest.mark.parametrize("case", NORMALIZATION)
def test_normalizers_are_left_out_only_where_they_cancel(case):
    branches, expected = NORMALIZATION[case]
    table = table_of([prompt([each for option in branches for each in option])])
    assert YesNo().normalizes(table) is expected
    assert Letters().normalizes(table)
    assert LogLikelihood().normalizes(table)


def test_yes_no_is_the_difference_of_the_labels():
    prompts = [
        prompt(yes_no_branches(0, [1, 2]) + yes_no_branches(1, [1, 3], yes=(7, 6)), name="first"),
        prompt(yes_no_branches(0, [1, 4]) + yes_no_branches(1, [1, 5]), name="second"),
    ]
    logits = np.array([-1.0, -2.5, -0.5, -0.25, -3.0, -4.0, -1.0, -0.125, -9.0])
    first, second = score_by(YesNo(), prompts, logits=logits)
    np.testing.assert_allclose(first.scores, [1.5, -0.75 + 3.0])
    np.testing.assert_allclose(second.scores, [-3.0, 8.875])
    assert [first.question.id, second.question.id] == ["first", "second"]
    assert first.order == (1, 0)


def letters_prompt(orders: list[tuple[int, ...]]) -> Prompt:
    branches = [
        branch(option, [1, 10 + number], [(2, 20 + place)], label="ABC"[place], order=order)
        for number, order in enumerate(orders)
        for place, option in enumerate(order)
    ]
    return prompt(branches, options=("x", "yy", "zzz"))


def test_letters_in_one_order():
    prompts = [letters_prompt([(2, 0, 1)])]
    (row,) = score_by(Letters(), prompts, logits=[-3.0, -1.0, -2.0])
    np.testing.assert_allclose(row.scores, [-1.0, -2.0, -3.0])
    np.testing.assert_allclose(row.probabilities, np.exp(row.scores) / np.exp(row.scores).sum())


def test_letters_are_unrotated_and_averaged():
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    prompts = [letters_prompt(orders)]
    logits = np.array([-1.0, -2.0, -3.0, -0.5, -4.0, -1.5, -6.0, -0.25, -2.25])
    (row,) = score_by(Letters(), prompts, logits=logits)
    expected = np.zeros(3)
    for number, order in enumerate(orders):
        shown = np.exp(logits[3 * number : 3 * number + 3])
        for place, option in enumerate(order):
            expected[option] += shown[place] / shown.sum() / len(orders)
    np.testing.assert_allclose(row.probabilities, expected)
    np.testing.assert_allclose(row.scores, np.log(expected))


OPTIONS = ("w\u00f6rd", "two words", "")
LENGTHS = {"none": [1, 1], "char": [4, 9], "byte": [5, 9], "token": [1, 3]}


@pytest.mark.parametrize("normalize", LENGTHS)
def test_loglik_is_the_sum_over_the_length_and_beside_it_the_sum(normalize):
    branches = [
        branch(0, [1], [(1, 5)]),
        branch(1, [1, 6, 7], [(1, 6), (2, 7), (3, 5)]),
        branch(2, [1], [(1, 9)]),
    ]
    prompts = [prompt(branches, options=OPTIONS)]
    logits = np.array([-2.0, -1.0, -0.5, -3.0, -8.0])
    (row,) = score_by(LogLikelihood(normalize=normalize), prompts, logits=logits)
    first, second = LENGTHS[normalize]
    np.testing.assert_allclose(row.scores, [-2.0 / first, -4.5 / second, -8.0])
    np.testing.assert_allclose(row.member_scores["loglik"], [-2.0, -4.5, -8.0])
    np.testing.assert_allclose(row.probabilities, np.exp(row.scores) / np.exp(row.scores).sum())


def test_an_empty_option_is_the_least_likely():
    branches = [branch(0, [1], [(1, 5)]), branch(1, [1], [])]
    (row,) = score_by(LogLikelihood(), [prompt(branches, options=("word", ""))], logits=[-2.0])
    np.testing.assert_allclose(row.scores, [-0.5, -0.5 - EMPTY_OPTION_PENALTY])
    np.testing.assert_allclose(row.member_scores["loglik"], [-2.0, -2.0 - EMPTY_OPTION_PENALTY])


def test_log_likelihoods_are_divided_only_where_there_are_any():
    assert with_normalization(LogLikelihood(), "byte") == LogLikelihood(normalize="byte")
    letters = Letters()
    assert with_normalization(letters, "byte") is letters
    with pytest.raises(InputError, match="--normalize 'word': expected none, char, byte or token"):
        with_normalization(letters, "word")  # type: ignore[arg-type]


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(FloatingPointError, match="not finite"):
        score_by(YesNo(), [prompt(yes_no_branches(0, [1, 2]))], logits=[-1.0, np.nan])
