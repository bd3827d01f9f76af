"""The bench of a trained encoder: its mixture of training sets, and its cosines told by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from strata.engine.questions.question_file import read_questions
from strata.engine.types import InputError, Question, RunWarnings
from strata.scripts.bench.train.encoder import (
    find_encoder,
    measure_cosines,
    mix_training_sets,
    write_questions,
)


def write_csv(path: Path, rows: Sequence[str]) -> Path:
    path.write_text("\n".join(["id,prompt,A,B,C,answer", *rows]) + "\n", encoding="utf-8")
    return path


def test_tested_questions_and_empty_options_are_no_training_questions(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "first.csv", ["1,What is a star?,a,b,c,A", "2,What  IS rain?,a,b,c,B"])
    second = write_csv(tmp_path / "second.csv", ["1,Where is it?,a,,c,C", "2,Who is it?,a,b,c,C"])
    tested = [Question(id="9", prompt="What is rain?", options=("a", "b"))]
    mixed = mix_training_sets([first, second], tested)
    assert [number for number, _ in mixed] == ["first-1", "second-2"]
    write_questions(tmp_path / "mixed.jsonl", mixed)
    read = read_questions(tmp_path / "mixed.jsonl", warnings=RunWarnings())
    assert [(one.id, one.prompt, one.options, one.answer) for one in read] == [
        ("first-1", "What is a star?", ("a", "b", "c"), 0),
        ("second-2", "Who is it?", ("a", "b", "c"), 2),
    ]


def test_cosines_rank_options_against_question_and_against_context() -> None:
    angles = {"Q": 0.0, "x": 0.1, "y": 0.2, "z": 0.3, "C": 0.3, "Q x": 0.1, "Q y": 0.2, "Q z": 0.3}

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.array([[np.cos(angles[text]), np.sin(angles[text])] for text in texts])

    questions = [
        Question(id=str(answer), prompt="Q", options=("x", "y", "z"), answer=answer, context="C")
        for answer in (0, 2, 2)
    ]
    found = measure_cosines(questions, encode)
    assert found["cosine_question"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    assert found["cosine_context"] == pytest.approx((1 / 3 + 1 + 1) / 3)


def test_unknown_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--encoder nowhere"):
        find_encoder("nowhere")
    assert find_encoder(str(tmp_path)) == tmp_path
