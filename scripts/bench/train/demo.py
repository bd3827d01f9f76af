"""The demo's figures: MAP@3 on held-out things with the passage that the search finds, and without."""

from __future__ import annotations

from typing import Any

from strata.engine.questions.metrics import evaluate
from strata.engine.questions.question_file import read_questions
from strata.engine.types import RunWarnings
from strata.scripts.bench.configs import TrainBenchConfig
from strata.scripts.bench.record import print_table
from strata.scripts.demo import QUESTIONS_PATH, find_contexts, occurrence_map_at_3, score


def run_demo_part(config: TrainBenchConfig) -> dict[str, Any]:
    """Runs the demo's two scorings in the bench's folder."""
    out = config.folder / "demo"
    asked = find_contexts(out)
    metrics = {
        name: evaluate(score(questions, out / name))
        for name, questions in (("with", asked), ("without", QUESTIONS_PATH))
    }
    found = {name: figures["map_at_3"] for name, figures in metrics.items() if figures is not None}
    by_occurrence = occurrence_map_at_3(read_questions(asked, warnings=RunWarnings()))
    print_table([{"retrieval": name, "MAP@3": value} for name, value in found.items()])
    return {
        "demo_map3": found["with"],
        "demo_map3_without_retrieval": found["without"],
        "demo_map3_by_occurrence": by_occurrence,
    }
