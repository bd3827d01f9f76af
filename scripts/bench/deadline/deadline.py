"""`strata bench deadline`: what a run of two stages makes of a third of the time that it would take.

The bundled model answers the bundled questions without a context, then, the least sure first, with what the
search found. `deadline_overrun` is the seconds of the run with a deadline over those allowed, less one; 0
where it ends in time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strata.engine.pipeline.config import read_pipeline
from strata.engine.pipeline.run import run_pipeline
from strata.engine.pipeline.settings import RunSettings
from strata.engine.questions.question_file import read_questions
from strata.engine.types import Question, RunWarnings
from strata.scripts import demo
from strata.scripts.bench.deadline.config import DeadlineBenchConfig
from strata.scripts.bench.record import (
    RESULTS,
    append_result,
    asked_settings,
    print_environment,
    print_table,
)


def run_deadline_bench(config: DeadlineBenchConfig) -> int:
    """Runs twice, prints and appends the result."""
    print_environment()
    figures = measure_deadline(config)
    print_table([figures])
    append_result("deadline", figures | {"config": asked_settings(config)}, RESULTS)
    return 0


def measure_deadline(config: DeadlineBenchConfig) -> dict[str, Any]:
    """Seconds of both runs, questions that the second stage reached, and MAP@3 after each stage."""
    found = read_questions(demo.find_contexts(config.folder), warnings=RunWarnings())
    asked = write_questions(config, found)
    whole = _run(config, asked, "whole")
    allowed_s = config.share * whole["measured"]["seconds"]
    hurried = _run(config, asked, "hurried", f"deadline={allowed_s}s")
    seconds = hurried["measured"]["seconds"]
    first, second = hurried["measured"]["stages"]
    return {
        "whole_s": whole["measured"]["seconds"],
        "allowed_s": allowed_s,
        "seconds": seconds,
        "deadline_overrun": max(0.0, seconds / allowed_s - 1),
        "first_stage_reached": first["num_reached"] / first["num_chosen"],
        "second_stage_reached": second["num_reached"] / second["num_chosen"],
        "map3_first_stage": first["metrics"]["map_at_3"],
        "map3_in_time": hurried["metrics"]["map_at_3"],
        "map3_whole": whole["metrics"]["map_at_3"],
    }


def write_questions(config: DeadlineBenchConfig, questions: Sequence[Question]) -> Path:
    """The questions several times, no two alike, each with its own and other passages."""
    lines = []
    for number in range(config.times):
        for place, question in enumerate(questions):
            others = [questions[(place + step) % len(questions)].context for step in range(config.chunks)]
            row: dict[str, Any] = {"id": f"{number}-{question.id}"}
            row |= {"question": f"{number}: {question.prompt}"}
            row |= {"options": question.options, "answer": question.answer}
            lines.append(json.dumps(row | {"context": f"{number}: {' '.join(others)}"}) + "\n")
    path = config.folder / "asked.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _run(config: DeadlineBenchConfig, asked: Path, name: str, *settings: str) -> dict[str, Any]:
    member = {"model": str(demo.MODEL), "adapter": str(demo.ADAPTER)}
    stages = [
        {"members": ["closed"]},
        {"members": ["open"], "questions": {"least_sure": 1.0}, "combine": "replace"},
    ]
    file = {
        "members": {"closed": member | {"context": "none"}, "open": member},
        "stages": stages,
        "machine": {"dtype": "float32"},
    }
    path = config.folder / "pipeline.yaml"
    path.write_text(json.dumps(file), encoding="utf-8")  # JSON is YAML
    out = config.folder / name
    run = RunSettings(config=path, questions=asked, out=out, overwrite=True)
    return run_pipeline(read_pipeline(path, settings), run, {}).record
