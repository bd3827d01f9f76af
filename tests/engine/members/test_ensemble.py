"""Members' scores as one: the mean of their probabilities."""

import warnings
from dataclasses import replace

import numpy as np

from strata.engine.ensembles.named_scores import scores_of_member
from strata.engine.heads.probabilities import option_probabilities
from strata.engine.members.ensemble import average_members
from strata.engine.types import Question, QuestionScores


def member(scores: list[float]) -> list[QuestionScores]:
    options = tuple("abc"[: len(scores)])
    question = Question(id="q", prompt="?", options=options)
    array = np.array(scores)
    return [QuestionScores(question=question, scores=array, probabilities=option_probabilities(array))]


def test_members_are_averaged_by_probability():
    scores = {"one": [2.0, 0.0, -1.0], "two": [-3.0, 4.0, 0.5]}
    (row,) = average_members({name: member(values) for name, values in scores.items()})
    expected = np.mean([np.exp(values) / np.exp(values).sum() for values in scores.values()], axis=0)
    np.testing.assert_allclose(row.probabilities, expected)
    np.testing.assert_allclose(row.scores, np.log(expected))
    for name, values in scores.items():
        np.testing.assert_array_equal(row.member_scores[name], values)


def test_what_heads_give_beside_their_scores_is_kept():
    told = {
        name: [replace(member(scores)[0], member_scores={"loglik": np.array(sums)})]
        for name, scores, sums in (("one", [3.0, 0.0], [-3.0, -4.0]), ("two", [1.0, 2.0], [-5.0, -6.0]))
    }
    (row,) = average_members(told)
    assert list(row.member_scores) == ["one", "two", "one_loglik", "two_loglik"]
    np.testing.assert_array_equal(row.member_scores["two_loglik"], [-5.0, -6.0])
    alone = scores_of_member(row, "two")
    np.testing.assert_array_equal(alone.scores, [1.0, 2.0])
    np.testing.assert_array_equal(alone.member_scores["loglik"], [-5.0, -6.0])
    np.testing.assert_allclose(alone.probabilities, option_probabilities(np.array([1.0, 2.0])))


def test_a_single_member_is_itself():
    rows = member([1.0, 0.5])
    assert average_members({"base": rows}) is rows


def test_members_that_are_very_sure_are_averaged_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = average_members({"one": member([2000.0, 0.0]), "two": member([0.0, -2000.0])})
    assert np.isfinite(row.scores).all()
