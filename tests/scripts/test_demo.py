"""The demo on its bundled files: it answers well with what it finds, and says what it does."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from strata.engine.questions.question_file import read_questions
from strata.engine.types import Question, RunWarnings
from strata.scripts.demo import (
    ADAPTER,
    MODEL,
    PASSAGES_PATH,
    QUESTIONS_PATH,
    occurrence_map_at_3,
    run_demo,
    shorten,
)
from strata.training.demo_corpus.build import BuildConfig, build_corpus

MOST_BYTES = 8 << 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert run_demo(out) == 0
    return out


def map_at_3(run: Path) -> float:
    return json.loads((run / "run.json").read_text())["metrics"]["map_at_3"]


def test_retrieval_makes_the_answers_good(demo: Path) -> None:
    assert map_at_3(demo / "run") >= 0.85
    assert map_at_3(demo / "run-closed-book") < 0.6


def test_every_question_has_a_context_and_an_answer(demo: Path) -> None:
    asked = read_questions(demo / "with_context.csv", warnings=RunWarnings())
    assert all(question.context for question in asked)
    submission = (demo / "run" / "submission.csv").read_text(encoding="utf-8").splitlines()
    assert len(submission) == 1 + len(asked)
    assert (demo / "run" / "report.html").is_file()


def test_demo_again_in_the_same_folder(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo / "run" / "submission.csv").read_bytes()
    assert run_demo(demo) == 0
    printed = capsys.readouterr().out
    assert "with retrieval" in printed
    assert "longest option first" in printed
    assert "submission.csv" in printed
    assert (demo / "run" / "submission.csv").read_bytes() == before


def test_bundled_files_are_those_of_the_corpus(tmp_path: Path) -> None:
    build_corpus(BuildConfig(out=tmp_path))
    assert PASSAGES_PATH.read_bytes() == (tmp_path / "passages.jsonl").read_bytes()
    assert QUESTIONS_PATH.read_bytes() == (tmp_path / "test.csv").read_bytes()


def test_bundled_files_are_small() -> None:
    files = [path for path in MODEL.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {path.name for path in MODEL.iterdir()}
    assert (ADAPTER / "adapter_config.json").is_file()


def test_nothing_of_this_machine_is_in_the_adapter() -> None:
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    assert not str(config["base_model_name_or_path"]).startswith("/")


def test_letters_do_not_give_the_answers_away() -> None:
    with QUESTIONS_PATH.open(encoding="utf-8", newline="") as file:
        per_letter = Counter(row["answer"] for row in csv.DictReader(file))
    total = sum(per_letter.values())
    assert set(per_letter) == set("ABCDE")
    assert max(per_letter.values()) < 0.3 * total


def test_occurrence_baseline_is_the_expected_value() -> None:
    options = ("tin", "iron", "gold", "lead", "zinc")

    def ask(context: str) -> Question:
        return Question(id="1", prompt="?", options=options, answer=0, context=context)

    assert occurrence_map_at_3([ask("of tin alone")]) == 1.0
    assert occurrence_map_at_3([ask("tin and iron")]) == pytest.approx((1 + 1 / 2) / 2)
    assert occurrence_map_at_3([ask("iron")]) == pytest.approx((1 / 2 + 1 / 3) / 4)
    assert occurrence_map_at_3([ask("")]) == pytest.approx((1 + 1 / 2 + 1 / 3) / 5)


def test_shorten_keeps_the_beginning() -> None:
    assert shorten("short", 10) == "short"
    assert shorten("a long sentence", 10) == "a long..."
