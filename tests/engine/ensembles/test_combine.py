"""Pools against a slow loop and hand-made figures; properties that every pool has."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata

from strata.engine.ensembles.combine import Combination, combine_members, combine_scores, uniform
from strata.engine.members.ensemble import average_members
from strata.engine.types import InputError

from .planted_members import make_row, planted_members

POOLS = ["probabilities", "logits", "ranks"]


def slow_pool(scores, weights, over):
    """Option by option, in probabilities, without a logarithm of a sum."""
    total = sum(weights)
    pooled = []
    for option in range(len(scores[0])):
        value = 0.0
        for row, weight in zip(scores, weights, strict=True):
            if over == "probabilities":
                value += weight / total * softmax(row)[option]
            elif over == "logits":
                value += weight / total * log_softmax(row)[option]
            else:
                value += weight / total * (len(row) - rankdata(-row)[option] + 0.5)
        pooled.append(np.exp(value) if over == "logits" else value)
    return np.array(pooled) / sum(pooled)


@pytest.mark.parametrize("over", POOLS)
def test_like_a_slow_loop(over):
    generator = np.random.default_rng(0)
    for num_options in (1, 2, 5, 9):
        scores = generator.integers(-3, 4, size=(3, num_options)).astype(float)
        weights = [0.5, 2.0, 1.5]
        combination = Combination(over=over, weights=dict(zip("abc", weights, strict=True)))
        found = np.exp(combine_scores(dict(zip("abc", scores, strict=True)), combination))
        assert found == pytest.approx(slow_pool(scores, weights, over))


def test_ranks_by_hand():
    combination = Combination(over="ranks", weights={"a": 1, "b": 1})
    found = np.exp(combine_scores({"a": np.array([3.0, 2, 1]), "b": np.array([1.0, 1, 0])}, combination))
    # Borda: a gives 5/9, 3/9, 1/9; b's first two share 5/9 and 3/9.
    assert found == pytest.approx([(5 + 4) / 18, (3 + 4) / 18, (1 + 1) / 18])


SCORES = st.integers(1, 6).flatmap(
    lambda num_options: st.lists(
        st.lists(
            st.one_of(st.floats(-1e4, 1e4), st.just(-np.inf)), min_size=num_options, max_size=num_options
        ).filter(lambda row: max(row) > -np.inf),
        min_size=1,
        max_size=4,
    )
)


@settings(deadline=None, max_examples=300)
@given(scores=SCORES, over=st.sampled_from(POOLS), weights=st.lists(st.floats(0, 5), min_size=4, max_size=4))
def test_every_pool(scores, over, weights):
    given_scores = {str(place): np.array(row) for place, row in enumerate(scores)}
    combination = Combination(over=over, weights={str(p): w + (p == 3) for p, w in enumerate(weights)})
    pooled = combine_scores(given_scores, combination)
    assert np.exp(pooled).sum() == pytest.approx(1)
    assert not np.isnan(pooled).any()
    # An option that is best of all to every member is best to the pool.
    firsts = {tuple(np.flatnonzero(row == row.max())) for row in given_scores.values()}
    if len(firsts) == 1 and len(next(iter(firsts))) == 1:
        assert pooled[next(iter(firsts))[0]] == pooled.max()
    doubled = Combination(over=over, weights={name: 2 * w for name, w in combination.weights.items()})
    assert combine_scores(given_scores, doubled) == pytest.approx(pooled)


def test_equal_weights_are_the_mean_that_members_have():
    members = planted_members(20, seed=0)
    expected = average_members(members)
    found = combine_members(members, uniform(list(members)))
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other.scores)
        assert one.member_scores.keys() == other.member_scores.keys()
        assert one.question is other.question


@pytest.mark.parametrize("over", POOLS)
def test_a_member_that_lacks_the_question_is_left_out(over):
    scores = {"a": np.array([1.0, 0, -1]), "c": np.array([0.0, 2, -1])}
    with_b = Combination(over=over, weights={"a": 1, "b": 7, "c": 3})
    without = Combination(over=over, weights={"a": 0.25, "c": 0.75})
    assert combine_scores(scores, with_b) == pytest.approx(combine_scores(scores, without))
    only_b = Combination(over=over, weights={"a": 0, "b": 1, "c": 0})
    assert combine_scores(scores, only_b) == pytest.approx(combine_scores(scores, uniform(["a", "c"], over)))


def test_members_with_different_questions():
    members = {
        "a": [make_row([0.0, 1], 0, "1"), make_row([0.0, 1], 0, "2")],
        "b": [make_row([5.0, 1], 0, "2", beside=np.zeros(2)), make_row([2.0, 1, 0], 2, "3")],
    }
    rows = combine_members(members, Combination(weights={"a": 1, "b": 1}))
    assert [row.question.id for row in rows] == ["1", "2", "3"]
    assert [list(row.member_scores) for row in rows] == [["a"], ["a", "b", "b_beside"], ["b"]]
    assert rows[1].order == (0, 1)


def test_a_weight_of_0_and_a_probability_of_0():
    scores = {"a": np.array([0.0, -np.inf]), "b": np.array([-np.inf, 0.0])}
    for over in POOLS:
        assert np.exp(combine_scores(scores, uniform(["a", "b"], over))) == pytest.approx([0.5, 0.5])
        lone = combine_scores(scores, Combination(over=over, weights={"a": 1, "b": 0}))
        assert lone == pytest.approx(combine_scores(scores, Combination(over=over, weights={"a": 1})))


def test_json():
    combination = Combination(over="ranks", weights={"a": 0.25, "b": 0.75})
    assert Combination.from_dict(json.loads(json.dumps(combination.as_dict())), "w.json") == combination


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"over": "medians", "weights": {"a": 1.0}}, "w.json: over: input should be"),
        ({"over": "ranks", "weights": {}}, "w.json: weights: "),
        ({"over": "ranks", "weights": {"a": -1.0}}, "w.json: weight of member 'a': -1.0; expected"),
        ({"over": "ranks", "weights": {"a": 0.0}}, "w.json: weights: all are 0"),
        ({"weights": {"a": 1.0}}, "w.json: over: field required"),
    ],
)
def test_json_that_does_not_fit(content, told):
    with pytest.raises(InputError, match=told) as caught:
        Combination.from_dict(content, "w.json")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_combined():
    with pytest.raises(InputError, match="over: 'medians'; expected probabilities, logits, ranks"):
        Combination(over="medians", weights={"a": 1})
    with pytest.raises(InputError, match="member 'b' has no weight"):
        combine_members({"b": [make_row([0.0, 1])]}, Combination(weights={"a": 1}))
    with pytest.raises(InputError, match="no member has the question"):
        combine_scores({"b": np.zeros(2)}, Combination(weights={"a": 1}))
    with pytest.raises(InputError, match="question '1': member 'b' scores 3 options; expected 2"):
        combine_members({"a": [make_row([0.0, 1])], "b": [make_row([0.0, 1, 2])]}, uniform(["a", "b"]))
    for over in POOLS:
        with pytest.raises(ValueError, match="one number an option"):
            combine_scores({"a": np.array([np.nan, 0])}, Combination(over=over, weights={"a": 1}))
