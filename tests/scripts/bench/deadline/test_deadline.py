"""The bench of deadlines on a few questions: what it tells is what the two runs have left."""

from __future__ import annotations

import json

import pytest

from strata.engine.types import Question
from strata.scripts import demo
from strata.scripts.bench.deadline import deadline
from strata.scripts.bench.deadline.config import DeadlineBenchConfig


def test_it_tells_what_the_runs_have_left(tmp_path, monkeypatch, fixed_rates):
    questions = [
        Question(id=str(n), prompt=f"Is {n} odd?", options=("yes", "no"), answer=n % 2, context=f"{n} is so.")
        for n in range(6)
    ]
    monkeypatch.setattr(demo, "find_contexts", lambda folder: folder)
    monkeypatch.setattr(deadline, "read_questions", lambda path, warnings: questions)
    config = DeadlineBenchConfig(folder=tmp_path, times=2, chunks=2, share=1.0)
    figures = deadline.measure_deadline(config)
    hurried = json.loads((tmp_path / "hurried" / "run.json").read_text())["measured"]
    assert figures["seconds"] == hurried["seconds"]
    assert figures["deadline_overrun"] == max(0.0, figures["seconds"] / figures["allowed_s"] - 1)
    assert figures["allowed_s"] == pytest.approx(figures["whole_s"])
    assert figures["second_stage_reached"] == hurried["stages"][1]["num_reached"] / 12
    rows = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    assert len({row["context"] for row in rows}) == 12
