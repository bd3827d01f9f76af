"""Interrupted runs that go on, and runs that must end in time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from strata.engine.config import ScoreConfig
from strata.engine.deadline import Deadline, parse_duration_s
from strata.engine.results.partial_scores import FILE_NAME, PartialScores
from strata.engine.types import InputError
from strata.scripts.cli import main


def scores_of(run):
    return {row.question.id: row.scores for row in run.scores}


def test_a_resumed_run_scores_as_an_uninterrupted_one(score, checkpoint, tmp_path, monkeypatch):
    model = checkpoint("llama-gqa")
    whole = scores_of(score(model=model, num_groups=3))
    out = tmp_path / "cut"
    calls = []
    add = PartialScores.add

    def crash_after_the_second_group(self, scores):
        add(self, scores)
        calls.append(scores)
        if len(calls) == 2:
            raise RuntimeError("power cut")

    monkeypatch.setattr(PartialScores, "add", crash_after_the_second_group)
    with pytest.raises(RuntimeError, match="power cut"):
        score(model=model, num_groups=3, out=out)
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    assert not (out / "submission.csv").exists()
    kept = len((out / FILE_NAME).read_text().splitlines()) - 1
    assert 0 < kept < len(whole)
    monkeypatch.setattr(PartialScores, "add", add)
    with (out / FILE_NAME).open("a") as file:
        file.write('{"id": "cut off by the cra')
    resumed = score(model=model, num_groups=3, out=out, resume=True)
    assert resumed.record["measured"]["resumed_questions"] == kept
    assert resumed.record["measured"]["tokens_computed"] == resumed.record["plan"]["trie_nodes"]
    found = scores_of(resumed)
    assert list(found) == list(whole)
    for question_id, expected in whole.items():
        np.testing.assert_allclose(found[question_id], expected, atol=1e-5)
    assert not (out / FILE_NAME).exists()


PIPELINE = """\
members: {plain: {model: %s, head: loglik, context: none}}
stages: [{members: [plain]}]
machine: {dtype: float32, devices: cpu}
"""


@pytest.mark.parametrize("command", ["score", "run"])
def test_who_interrupts_is_told_what_is_kept(command, checkpoint, questions, tmp_path, monkeypatch, capsys):
    add, model = PartialScores.add, checkpoint("llama-gqa")

    def stop_after_the_first_group(self, scores):
        add(self, scores)
        raise KeyboardInterrupt

    monkeypatch.setattr(PartialScores, "add", stop_after_the_first_group)
    (tmp_path / "run.yaml").write_text(PIPELINE % model)
    given = [str(tmp_path / "run.yaml")] if command == "run" else ["--model", str(model), "--devices", "cpu"]
    out = tmp_path / "out"
    assert main([command, *given, "--questions", str(questions), "--out", str(out)]) == 130
    kept = sum(len(path.read_text().splitlines()) - 1 for path in out.rglob(FILE_NAME))
    assert kept > 0
    told = f"strata: interrupted; {kept} result(s) are kept in {out}: --resume goes on after them"
    assert capsys.readouterr().err.strip().splitlines()[-1] == told


def test_resume_refuses_the_partial_results_of_another_job(score, checkpoint, tmp_path):
    out = tmp_path / "other"
    out.mkdir()
    (out / FILE_NAME).write_text('{"fingerprint": "another"}\n')
    with pytest.raises(InputError, match="--resume"):
        score(model=checkpoint("llama-gqa"), out=out, resume=True)


def test_a_run_without_resume_begins_anew(score, checkpoint, tmp_path):
    out = tmp_path / "anew"
    out.mkdir()
    (out / FILE_NAME).write_text('{"fingerprint": "another"}\n')
    assert score(model=checkpoint("llama-gqa"), out=out).record["measured"]["resumed_questions"] == 0


def test_what_the_deadline_leaves_out_is_guessed_and_told(score, checkpoint, monkeypatch):
    allows, answers = Deadline.allows, iter((True, False))
    monkeypatch.setattr(Deadline, "allows", lambda self, longest_s: next(answers))
    run = score(model=checkpoint("llama-gqa"), num_groups=3, deadline="1h")
    left_out = run.record["warnings"]["rows"]["not scored before the deadline"]["ids"]
    assert 0 < len(left_out) < len(run.scores)
    for row in run.scores:
        if row.question.id in left_out:
            longest = max(range(len(row.question.options)), key=lambda i: len(row.question.options[i]))
            assert row.order[0] == longest
            assert row.margin < 1e-3
    assert (run.out / FILE_NAME).exists(), "what was scored can be gone on with"
    monkeypatch.setattr(Deadline, "allows", allows)
    finished = score(model=checkpoint("llama-gqa"), num_groups=3, out=run.out, resume=True)
    assert "not scored before the deadline" not in finished.record["warnings"]["rows"]


def test_a_deadline_that_has_passed_ends_the_sweep_after_one_group(score, checkpoint):
    run = score(model=checkpoint("llama-gqa"), num_groups=3, deadline="0.001s")
    assert run.record["warnings"]["rows"]["not scored before the deadline"]["count"] > 0
    assert run.record["status"] == "done"


@pytest.mark.parametrize(("text", "seconds"), [("8.5h", 30600.0), ("90m", 5400.0), ("600s", 600.0)])
def test_durations(text, seconds):
    assert parse_duration_s("--deadline", text) == seconds


@pytest.mark.parametrize("text", ["", "h", "8", "-1h", "0s", "nanh", "infh", "soon"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InputError, match="--deadline"):
        ScoreConfig(model=Path("m"), questions=Path("q"), out=Path("o"), deadline=text).check()
