"""What a peer is given and gives back: questions in a file, an answer in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from strata.scripts.bench.peers import exchange
from strata.scripts.bench.workloads.baselines import BaselineRun
from strata.scripts.bench.workloads.synthetic_questions import SyntheticQuestion

from .peer_work import QUESTIONS

ANSWER = {
    "question_s": [1.5, 2.0],
    "scores": [[0.1, -0.2], [1.0, 3.0]],
    "versions": {"torch": "2"},
    "peak_rss_bytes": 7,
}


def test_questions_of_any_form_survive_the_file(tmp_path):
    ragged = SyntheticQuestion(np.arange(3, 9), (np.arange(4), np.arange(7), np.arange(1)))
    exchange.save_questions(tmp_path / "questions.npz", [*QUESTIONS, ragged])
    found = exchange.load_questions(tmp_path / "questions.npz")
    assert len(found) == 3
    for one, other in zip(found, [*QUESTIONS, ragged], strict=True):
        np.testing.assert_array_equal(one.prefix_ids, other.prefix_ids)
        for ids, other_ids in zip(one.option_ids, other.option_ids, strict=True):
            np.testing.assert_array_equal(ids, other_ids)


def test_answer_is_the_last_line_and_exact(capsys):
    scores = np.array([[1 / 3, -2e-7]], dtype=np.float32)

    def measure() -> BaselineRun:
        print("{noise}")
        return BaselineRun(question_s=(0.25,), scores=scores)

    assert exchange.answer_request(measure, missing=None, packages=("torch",)) == 0
    out, err = capsys.readouterr()
    assert err == "{noise}\n"
    run = exchange.parse_answer("hello\n" + out, num_questions=1, num_options=2)
    assert isinstance(run, exchange.PeerRun)
    np.testing.assert_array_equal(run.scores, scores)
    assert run.question_s == (0.25,)
    assert run.versions["torch"].startswith("2.")
    if Path("/proc/self/status").is_file():
        assert run.peak_rss_bytes > 50 << 20


def test_absent_peer_answers_with_its_reason(capsys):
    missing = exchange.find_missing(("json", "no_such_peer", "nor_this"))
    assert missing == "needs no_such_peer, nor_this"
    assert exchange.find_missing(("json",)) is None
    assert exchange.answer_request(lambda: pytest.fail("ran"), missing=missing, packages=()) == 0
    assert exchange.parse_answer(capsys.readouterr().out, num_questions=9, num_options=9) == missing


@pytest.mark.parametrize(
    ("stdout", "message"),
    [
        ("", "expected a JSON object"),
        ("[1, 2]", "expected a JSON object"),
        (json.dumps(ANSWER) + "\nbye", "last line 'bye'"),
        (json.dumps({"question_s": [1.0]}), "lacks or garbles 'scores'"),
        (json.dumps(ANSWER | {"versions": 3}), "lacks or garbles"),
        (json.dumps(ANSWER | {"scores": [[1.0, 2.0]]}), r"scores of shape \(1, 2\) and 2 times"),
        (json.dumps(ANSWER | {"question_s": [1.0]}), "and 1 times: expected .* and 2"),
        (json.dumps(ANSWER | {"scores": [[0.0, float("nan")], [1.0, 2.0]]}), "inf or NaN"),
    ],
)
def test_answers_that_mean_nothing_are_refused(stdout, message):
    with pytest.raises(ValueError, match=message):
        exchange.parse_answer(stdout, num_questions=2, num_options=2)
    assert isinstance(
        exchange.parse_answer(json.dumps(ANSWER), num_questions=2, num_options=2), exchange.PeerRun
    )
