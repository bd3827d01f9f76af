"""What members have said so far makes an answer to every question, at every moment; units share the time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from strata.engine.deadline import Deadline
from strata.engine.heads.debias import STATED_ORDER
from strata.engine.pipeline.config import Stage
from strata.engine.pipeline.forecast import UnitForecast, deadline_of_unit
from strata.engine.pipeline.scoreboard import Scoreboard
from strata.engine.run.unreached import UNREACHED, guess
from strata.engine.types import Question, QuestionScores, RunWarnings

QUESTIONS = [Question(id=str(n), prompt="?", options=("a", "bbb", "cc"), answer=0) for n in range(4)]


def row(question, *probabilities):
    values = np.array(probabilities)
    return QuestionScores(question=question, scores=np.log(values), probabilities=values)


def board_of(*, replaces):
    stages = (
        Stage(name="1", members=("x", "y"), rule=None, replaces=False),
        Stage(name="2", members=("z",), rule=None, replaces=replaces),
    )
    pipeline = SimpleNamespace(
        stages=stages,
        ensemble=SimpleNamespace(over="probabilities"),
        members={"x": None, "y": None, "z": None},
    )
    return Scoreboard(pipeline=pipeline, questions=QUESTIONS, weights={"x": 1.0, "y": 3.0, "z": 4.0})


def test_before_anything_is_known_answers_are_guesses():
    for answer, question in zip(board_of(replaces=False).answers(), QUESTIONS, strict=True):
        assert answer.order == guess(question).order


@pytest.mark.parametrize(("replaces", "expected"), [(False, [0.15, 0.2, 0.65]), (True, [0.1, 0.1, 0.8])])
def test_a_later_stage_blends_or_replaces(replaces, expected):
    board = board_of(replaces=replaces)
    board.add(["x"], [row(q, 0.5, 0.3, 0.2) for q in QUESTIONS])
    board.add(["y"], [row(q, 0.1, 0.3, 0.6) for q in QUESTIONS[:3]])
    board.add(["z"], [row(QUESTIONS[0], 0.1, 0.1, 0.8)])
    np.testing.assert_allclose(board.answers()[0].probabilities, expected)
    np.testing.assert_allclose(board.answers()[1].probabilities, [0.2, 0.3, 0.5])
    np.testing.assert_allclose(board.answers()[3].probabilities, [0.5, 0.3, 0.2])
    np.testing.assert_allclose(board.answers(0)[0].probabilities, [0.2, 0.3, 0.5])
    np.testing.assert_allclose(board.answers()[0].member_scores["y"], np.log([0.1, 0.3, 0.6]))
    assert board.is_reached(QUESTIONS[0], 1)
    assert not board.is_reached(QUESTIONS[1], 1)


def test_members_scored_together_are_told_apart():
    board = board_of(replaces=False)
    together = QuestionScores(
        question=QUESTIONS[0],
        scores=np.zeros(3),
        probabilities=np.ones(3) / 3,
        member_scores={"x": np.array([1.0, 2.0, 3.0]), "y": np.array([3.0, 2.0, 1.0]), "x_sum": np.ones(3)},
    )
    board.add(["x", "y"], [together])
    np.testing.assert_array_equal(board.by_member["x"]["0"].scores, [1, 2, 3])
    np.testing.assert_array_equal(board.by_member["x"]["0"].member_scores["sum"], np.ones(3))
    assert board.by_member["y"]["0"].member_scores == {}


def test_of_members_scored_together_a_deadline_may_leave_some_unheard():
    """The last groups of a shared sweep end with some of its members only; see `SharedSweepJob.groups`."""
    board = board_of(replaces=False)
    heard = np.log([0.2, 0.3, 0.5])
    partly = QuestionScores(
        question=QUESTIONS[0], scores=heard, probabilities=np.exp(heard), member_scores={"y": heard}
    )
    board.add(["x", "y"], [partly])
    assert list(board.by_member) == ["y"]
    assert board.is_reached(QUESTIONS[0], 0)
    np.testing.assert_allclose(board.answers()[0].probabilities, [0.2, 0.3, 0.5])
    assert list(board.answers()[0].member_scores) == ["y"]


def test_what_was_before_debiasing_is_kept_of_a_lone_member_as_its_head_calls_it():
    board = board_of(replaces=False)
    board.pipeline.members = {"x": None}
    stated = np.log([0.1, 0.1, 0.8])
    board.add(["x"], [replace(row(QUESTIONS[0], 0.5, 0.3, 0.2), member_scores={STATED_ORDER: stated})])
    assert list(board.answers()[0].member_scores) == [STATED_ORDER]


def test_what_was_before_debiasing_is_kept_of_members_that_are_replaced():
    """A report sets a member after debiasing beside the same questions before it."""
    board = board_of(replaces=True)
    stated = np.log([0.1, 0.1, 0.8])
    board.add(["x"], [replace(row(QUESTIONS[0], 0.5, 0.3, 0.2), member_scores={STATED_ORDER: stated})])
    board.add(["z"], [row(QUESTIONS[0], 0.1, 0.1, 0.8)])
    assert set(board.answers()[0].member_scores) == {"x", "z", f"x_{STATED_ORDER}"}


def test_a_submission_is_whole_at_every_moment(tmp_path):
    board, warnings = board_of(replaces=False), RunWarnings()
    board.write_submission(tmp_path, "best")
    assert (tmp_path / "submission.csv").read_text().splitlines()[1:] == [f"{n},B C A" for n in range(4)]
    board.add(["x"], [row(QUESTIONS[2], 0.5, 0.3, 0.2)])
    board.write_submission(tmp_path, "best")
    assert (tmp_path / "submission.csv").read_text().splitlines()[3] == "2,A B C"
    board.warn_of_unreached(warnings)
    assert warnings.rows == {UNREACHED: ["0", "1", "3"]}


def forecast_of(*stages_and_seconds):
    return [
        UnitForecast(
            unit=SimpleNamespace(stage=stage),
            stage=str(stage),
            num_questions=1,
            is_assumed=False,
            seconds=seconds,
            plan={},
        )
        for stage, seconds in stages_and_seconds
    ]


@pytest.mark.parametrize(
    ("position", "factor", "expected_s"),
    [
        (0, 1.0, 1000.0),  # the first stage fits: it may use all the time there is
        (0, 10.0, 250.0),  # it does not: its two units share the time as their predictions say
        (2, 1.0, 1000.0),
        (2, 2.0, 1000 * 400 / 900),
        (3, 2.0, 1000.0),
    ],
)
def test_units_share_the_time(monkeypatch, position, factor, expected_s):
    monkeypatch.setattr("strata.engine.deadline.perf_counter", lambda: 0.0)
    forecasts = forecast_of((0, 100.0), (0, 300.0), (1, 400.0), (2, 500.0))
    final = Deadline(at_s=1000.0, gives_up=True)
    assert deadline_of_unit(forecasts, position, final, factor).at_s == pytest.approx(expected_s)
    assert deadline_of_unit(forecasts, position, Deadline(), factor) == Deadline()
