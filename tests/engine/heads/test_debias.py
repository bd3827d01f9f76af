"""Un-rotating and averaging against a direct computation, and the properties that make it a debiasing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.engine.heads.debias import group_by_order, rotations, unrotate_and_average
from strata.engine.heads.probabilities import option_probabilities
from strata.engine.types import Branch, Target


def softmax(scores):
    exponentials = np.exp(np.asarray(scores, dtype=np.float64))
    return exponentials / exponentials.sum()


def make_branch(option, order):
    token_ids = np.array([1], dtype=np.int32)
    target = Target(position=1, token_id=2)
    return Branch(option=option, order=order, label="A", token_ids=token_ids, text="", targets=(target,))


def test_rotations_start_with_the_stated_order():
    assert rotations(3) == ((0, 1, 2), (1, 2, 0), (2, 0, 1))


@given(st.integers(1, 26))
def test_rotations_show_every_option_in_every_place_once(num_options):
    table = np.array(rotations(num_options))
    for place in range(num_options):
        assert sorted(table[:, place]) == list(range(num_options))


def test_softmax_of_large_and_float32_scores():
    np.testing.assert_allclose(
        option_probabilities(np.array([1.0, 2.0, 0.5])), softmax([1, 2, 0.5]), rtol=1e-12
    )
    np.testing.assert_allclose(option_probabilities(np.array([1e4, 1e4 - 1])), softmax([1, 0]), rtol=1e-12)
    assert option_probabilities(np.array([0, 1], dtype=np.float32)).dtype == np.float64
    np.testing.assert_array_equal(option_probabilities(np.array([0, -np.inf])), [1, 0])


@pytest.mark.parametrize("scores", [[1, np.nan], [np.inf, 0], [-np.inf, -np.inf], [], [[1, 2]]])
def test_softmax_refuses_what_has_none(scores):
    with pytest.raises(ValueError, match="expected one number an option"):
        option_probabilities(np.array(scores))


def test_average_is_over_probabilities_not_scores():
    first, second = [0.0, 2.0, 1.0], [5.0, 0.0, -1.0]
    scores, probabilities = unrotate_and_average({(0, 1, 2): np.array(first), (1, 2, 0): np.array(second)})
    expected = (softmax(first) + softmax(second)) / 2
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
    np.testing.assert_allclose(scores, np.log(expected), rtol=1e-12)
    assert not np.allclose(probabilities, softmax(np.add(first, second) / 2))


def test_one_order_keeps_the_probabilities():
    scores, probabilities = unrotate_and_average({(): np.array([-3.0, -1.0])})
    np.testing.assert_allclose(probabilities, softmax([-3, -1]), rtol=1e-12)
    np.testing.assert_allclose(np.exp(scores), probabilities, rtol=1e-12)


def test_scores_do_not_underflow():
    scores, _ = unrotate_and_average({order: np.array([0.0, -2000.0]) for order in rotations(2)})
    np.testing.assert_allclose(scores, [0, -2000])


def test_an_impossible_option_stays_impossible_without_nan():
    with np.errstate(all="raise"):
        scores, probabilities = unrotate_and_average(
            {order: np.array([0.0, -np.inf]) for order in rotations(2)}
        )
    np.testing.assert_array_equal(scores, [0, -np.inf])
    np.testing.assert_array_equal(probabilities, [1, 0])


@given(st.lists(st.floats(-5, 5), min_size=5, max_size=5))
def test_rotation_removes_a_pure_position_bias(bias):
    # A model that looks at the place only: after un-rotating, every option has been in every place once.
    branches = [make_branch(option, order) for order in rotations(5) for option in order]
    branch_scores = [bias[branch.order.index(branch.option)] for branch in branches]
    _, probabilities = unrotate_and_average(group_by_order(branches, branch_scores))
    np.testing.assert_allclose(probabilities, 0.2, rtol=1e-9)


def test_grouping_is_by_order_and_own_option():
    branches = [
        make_branch(1, (1, 0)),
        make_branch(0, (0, 1)),
        make_branch(1, (0, 1)),
        make_branch(0, (1, 0)),
    ]
    grouped = group_by_order(branches, [10.0, 20.0, 30.0, 40.0])
    assert {order: list(scores) for order, scores in grouped.items()} == {(1, 0): [40, 10], (0, 1): [20, 30]}


def test_grouping_refuses_a_missing_and_a_doubled_option():
    order = (0, 1)
    with pytest.raises(ValueError, match="two of option 0"):
        group_by_order([make_branch(0, order), make_branch(0, order)], [1, 2])
    with pytest.raises(ValueError, match=r"expected 2 options in order \(1, 0\); got \[1\]"):
        group_by_order([make_branch(0, order), make_branch(1, order), make_branch(1, (1, 0))], [1, 2, 3])


@pytest.mark.parametrize(
    ("scores_per_order", "message"),
    [
        ({}, "at least one order"),
        ({(0, 1): [1, 2], (1, 0): [1, 2, 3]}, "as many scores"),
        ({(0, 0): [1, 2]}, "permutation of 2 options"),
        ({(0, 1, 2): [1, 2]}, "permutation of 2 options"),
        ({(0, 1): [1, np.nan]}, "expected one number an option"),
    ],
)
def test_average_refuses_what_does_not_fit(scores_per_order, message):
    with pytest.raises(ValueError, match=message):
        unrotate_and_average({order: np.array(scores) for order, scores in scores_per_order.items()})
