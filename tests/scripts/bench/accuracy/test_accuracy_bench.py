"""The accuracy bench on a tiny model: its keys, what it keeps, and the table against runs of the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.questions.metrics import evaluate
from strata.engine.questions.question_file import read_questions
from strata.engine.scorer import Scorer
from strata.engine.types import RunWarnings
from strata.scripts.bench.accuracy import accuracy, cells
from strata.scripts.bench.accuracy.config import AccuracyBenchConfig

from ....sample_questions import QUESTIONS, write_jsonl

SET = "arc_challenge_val"


@pytest.fixture
def config(checkpoint, fixed_rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AccuracyBenchConfig:
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path / "results")
    write_jsonl(tmp_path / f"{SET}.jsonl", QUESTIONS)
    return AccuracyBenchConfig(
        data=tmp_path,
        models=(checkpoint("llama-gqa"),),
        sets=(SET,),
        heads=("loglik", "letters-rotate"),
        folder=tmp_path / "runs",
        dtype="float32",
        table=tmp_path / "table.md",
    )


def recorded(config: AccuracyBenchConfig) -> dict:
    return json.loads(
        (config.data / "results" / "accuracy.jsonl").read_text(encoding="ascii").splitlines()[-1]
    )


def test_figures_are_those_of_the_library(config: AccuracyBenchConfig) -> None:
    assert accuracy.run_accuracy_bench(config) == 0
    found, (model,) = recorded(config), config.models
    questions = read_questions(config.data / f"{SET}.jsonl", warnings=RunWarnings())
    for way, member in {
        "loglik": Member(model=model, head="loglik", context="none"),
        "letters-rotate": Member(model=model, head="letters", debias="rotate", context="none"),
    }.items():
        with Scorer.open([member], MachineSettings(dtype="float32")) as scorer:
            expected = evaluate(scorer.score(questions))
        assert found[f"map3_{model.stem}_{way}_{SET}"] == pytest.approx(expected["map_at_3"])
        assert found[f"accuracy_{model.stem}_{way}_{SET}"] == pytest.approx(expected["accuracy"])
    assert found[f"acc_norm_{model.stem}_{SET}"] == found[f"accuracy_{model.stem}_loglik_{SET}"]
    assert found[f"map3_longest_{SET}"] == expected["heuristics"]["longest_option_map_at_3"]
    assert str(config.data) not in json.dumps(found)
    table = config.table.read_text(encoding="utf-8").splitlines()
    assert f"| {SET} ({expected['num_answered']}) |" in table[0]
    assert {line.count("|") for line in table} == {4}
    assert f"{expected['map_at_3']:.3f} ({expected['accuracy']:.3f})" in table[-1]


def test_a_second_call_goes_on_where_the_first_stopped(config: AccuracyBenchConfig, monkeypatch) -> None:
    score, asked = cells.score_questions, []

    def fails_at_the_second(run):
        asked.append(run.head)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return score(run)

    monkeypatch.setattr(cells, "score_questions", fails_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        accuracy.run_accuracy_bench(config)
    assert accuracy.run_accuracy_bench(config) == 0
    assert asked == ["loglik", "letters", "letters"]
    first = recorded(config)
    assert accuracy.run_accuracy_bench(config) == 0
    assert len(asked) == 3
    assert {key: value for key, value in recorded(config).items() if "map3" in key} == {
        key: value for key, value in first.items() if "map3" in key
    }
