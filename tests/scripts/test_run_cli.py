"""`strata run` on the command line: what it prints, forecasts, refuses, and leaves when it is killed."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from strata.engine.questions.question_file import read_questions
from strata.engine.results.tables import read_scores
from strata.engine.types import RunWarnings
from strata.scripts.cli import main

from ..engine.pipeline.demo_pipeline import DATA, MEMBER, find_passages, write_questions

THREE_STAGES = f"""\
members:
  plain: {{{MEMBER}, context: none}}
  loglik: {{model: {DATA / "model"}, head: loglik, context: none}}
  letters: {{model: {DATA / "model"}, head: letters, debias: rotate, context: none}}
stages:
  - members: [plain]
  - {{name: hard, members: [loglik], questions: {{least_sure: 0.6}}}}
  - {{name: hardest, members: [letters], questions: {{margin_below: 0.9}}, combine: replace}}
machine: {{dtype: float32, devices: cpu}}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(THREE_STAGES)
    return path


@pytest.fixture
def asked(tmp_path) -> Path:
    return write_questions(tmp_path / "questions.csv", num=30)


def test_what_is_printed(file, asked, tmp_path, capsys, fixed_rates):
    assert (
        main(["run", str(file), "--questions", str(asked), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stage 1 plain: 10 of 10 chosen question(s) in ")
    assert lines[1].startswith("stage hard: 6 of 6 chosen question(s) in ")
    assert "; on these MAP@3 " in lines[1]
    assert any(line.split()[:2] == ["loglik", "6"] for line in lines)
    assert lines[-1].endswith(f"submission.csv, scores.parquet, run.json, report.html in {tmp_path / 'out'}")


def test_a_stage_that_a_deadline_cut_says_so(file, asked, tmp_path, capsys, fixed_rates):
    flags = ["--out", str(tmp_path / "out"), "--deadline", "0.05s", "--set", "deadline=9h"]
    assert main(["run", str(file), "--questions", str(asked), *flags]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("stage 1 plain: 0 of 30 chosen question(s) before the deadline, in ")


def test_a_plan_says_what_every_stage_takes(file, asked, tmp_path, capsys, fixed_rates):
    flags = ["--set", "deadline=1s", "--set", "machine={devices: auto, dtype: float16}"]
    arguments = ["run", str(file), "--questions", str(asked), "--plan", *flags]
    assert main([*arguments, "--profile", "kaggle-2xt4"]) == 0
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines()]
    for stage, questions in (("1", 15), ("hard", 9), ("hardest", 5)):
        devices = [row[row.index("float16") - 1] for row in rows if "float16" in row and row[0] == stage]
        assert devices == ["cuda:0", "cuda:1"]
        assert all(
            row[row.index("float16") + 1] == str(questions)
            for row in rows
            if "float16" in row and row[0] == stage
        )
    assert "* a rule on scores: 30% of the questions are assumed" in told
    figures = json.loads(told.splitlines()[-1])
    assert len(figures["units"]) == 3
    assert figures["predicted_s"] == pytest.approx(sum(figures["units"]))
    assert "of the deadline of 1s" in told
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["members.plain.head=x"], "members.plain.head: expected one of"),
        (
            ["retrieval.wiki={index: /nowhere}", "members.plain.context=wiki"],
            "wiki.index: /nowhere: holds no",
        ),
        (["retrieval.wiki={method: [bm25]}", "members.plain.context=wiki"], "retrieval.wiki: no index"),
        (
            ["retrieval.wiki={index: x, qrels: y}", "members.plain.context=wiki"],
            "retrieval.wiki.qrels: unknown",
        ),
        (["retrieval.wiki={index: x, keep: 0}", "members.plain.context=wiki"], "retrieval.wiki: --keep: 0"),
        (
            ["retrieval.wiki={index: x, method: [bm]}", "members.plain.context=wiki"],
            "retrieval.wiki.method: ",
        ),
        (["members.plain.model=/nowhere"], "run.yaml:2:18: members.plain.model: /nowhere: no such file or"),
        (
            ["members.loglik.adapter=/nowhere"],
            "run.yaml:3:11: members.loglik.adapter: /nowhere: no such file",
        ),
        (["fitted=/nowhere.json"], "/nowhere.json"),
        (["x"], "--set 'x': expected KEY.KEY=VALUE"),
    ],
)
def test_what_is_refused(file, asked, tmp_path, capsys, fixed_rates, settings, message):
    flags = [text for setting in settings for text in ("--set", setting)]
    out = tmp_path / "out"
    assert main(["run", str(file), "--questions", str(asked), "--out", str(out), *flags]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (out / "run.json").exists()


def start(file, asked, out, *flags):
    """The command as a process of its own, on one thread."""
    command = [sys.executable, "-m", "strata.scripts.start", "run", str(file), "--questions", str(asked)]
    return subprocess.Popen(
        [*command, "--out", str(out), "--no-probe", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )


def finish(process):
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors.decode()


def kept_ids(out):
    """Ids of the lines of every member's journal, as often as they are there."""
    return {
        path.parent.name: [json.loads(line)["id"] for line in path.read_text().splitlines()[1:]]
        for path in sorted(out.glob("members/*/partial.jsonl"))
    }


def kill_and_resume(file, asked, folder, delays):
    """Kills a run after each delay in turn, then lets it end; returns its folder."""
    out = folder / "killed"
    for number, delay in enumerate(delays):
        process = start(file, asked, out, *(["--resume"] if number else []))
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        submission = out / "submission.csv"
        if submission.exists():
            rows = list(csv.DictReader(submission.open()))
            assert [row["id"] for row in rows] == [row["id"] for row in csv.DictReader(asked.open())]
            assert all(len(row["prediction"].split()) == 3 for row in rows)
    finish(start(file, asked, out, "--resume"))
    return out


def check_same(whole, resumed):
    for row, expected in zip(
        read_scores(resumed / "scores.parquet"), read_scores(whole / "scores.parquet"), strict=True
    ):
        np.testing.assert_array_equal(row.scores, expected.scores)
    for name, ids in kept_ids(resumed).items():
        assert len(ids) == len(set(ids)), f"{name}: something was computed twice"


@pytest.mark.slow
def test_twenty_kills_change_nothing(file, tmp_path):
    """kill -9 at 20 random moments of runs of three stages, then --resume."""
    asked = write_questions(tmp_path / "questions.csv", num=300)
    started = time.perf_counter()
    finish(start(file, asked, tmp_path / "whole"))
    seconds, chance = time.perf_counter() - started, random.Random(5)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        delays = [chance.uniform(0.2 * seconds, seconds) for _ in range(4)]
        check_same(tmp_path / "whole", kill_and_resume(file, asked, folder, delays))


TWO_STAGES = f"""\
members:
  closed: {{{MEMBER}, context: none}}
  open: {{{MEMBER}, context: question}}
stages:
  - members: [closed]
  - {{members: [open], questions: {{least_sure: 1.0}}, combine: replace}}
machine: {{dtype: float32, devices: cpu}}
"""
"""The second stage reads a passage, which the first does without: it is much better, and takes longer."""


def write_with_passages(path: Path, times: int) -> Path:
    """The bundled questions with passages, the one that answers first, several times, no two alike."""
    questions = read_questions(write_questions(path.with_suffix(".csv"), num=374), warnings=RunWarnings())
    passages = find_passages(questions, None)
    lines = []
    for number in range(times):
        for place, question in enumerate(questions):
            beside = [passages[(place + step) % len(passages)] for step in range(5)]
            row = {"id": f"{number}-{question.id}", "question": f"{number}: {question.prompt}"}
            row |= {
                "options": question.options,
                "answer": question.answer,
                "context": f"{number}: {' '.join(beside)}",
            }
            lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.slow
def test_a_deadline_is_kept_and_loses_nothing(file, tmp_path):
    """A third of the time that the stages take: ends in time, whole, no worse than the first stage alone."""
    asked = write_with_passages(tmp_path / "asked.jsonl", times=10)
    file.write_text(TWO_STAGES)
    finish(start(file, asked, tmp_path / "whole"))
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    allowed_s = record["measured"]["seconds"] / 3
    finish(start(file, asked, tmp_path / "out", "--set", f"deadline={allowed_s}s"))
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert found["measured"]["seconds"] <= 1.05 * allowed_s
    first, second = found["measured"]["stages"]
    assert first["num_reached"] == 374 * 10
    assert 0 < second["num_reached"] < 374 * 10
    assert found["metrics"]["map_at_3"] > first["metrics"]["map_at_3"]
    assert len(list(csv.DictReader((tmp_path / "out" / "submission.csv").open()))) == 374 * 10
