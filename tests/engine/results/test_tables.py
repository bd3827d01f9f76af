"""The tables a run leaves: what they hold, whether they come back, and what a full disk leaves of them."""

import csv
import json
import os
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strata.engine import files
from strata.engine.files import OutputError
from strata.engine.results import tables
from strata.engine.results.tables import (
    read_scores,
    write_label_submission,
    write_prompts,
    write_scores,
    write_submission,
)
from strata.engine.types import Branch, InputError, Prompt, Question, QuestionScores, Target

from ..ground.test_files import fail_with_full_disk, write_part_then_fail


def make_scores(question_id, scores, answer=None, members=None):
    values = np.array(scores, dtype=np.float32)
    question = Question(id=question_id, prompt="p", options=("x",) * len(scores), answer=answer)
    probabilities = np.exp(values) / np.exp(values).sum()
    members = {name: np.array(member, dtype=np.float32) for name, member in (members or {}).items()}
    return QuestionScores(
        question=question, scores=values, probabilities=probabilities, member_scores=members
    )


def test_full_disk_while_flushing_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "submission.csv").write_text("old")
    monkeypatch.setattr(files.os, "fsync", fail_with_full_disk)
    with pytest.raises(OutputError, match=r"submission\.csv: No space left"):
        write_submission(tmp_path / "submission.csv", [make_scores("1", [1, 2])])
    assert os.listdir(tmp_path) == ["submission.csv"]
    assert (tmp_path / "submission.csv").read_text() == "old"


def test_full_disk_in_the_parquet_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(tables.pq, "write_table", lambda table, path: write_part_then_fail(path))
    with pytest.raises(OutputError, match=r"scores\.parquet: No space left"):
        write_scores(tmp_path / "scores.parquet", [make_scores("1", [1, 2])])
    assert os.listdir(tmp_path) == []


def test_submission_has_the_three_best_letters(tmp_path):
    path = tmp_path / "submission.csv"
    rows = [make_scores("7", [1, 0, -1, 5, -2]), make_scores("8", [0, 1]), make_scores("9", [2, 2, 2, 2])]
    write_submission(path, rows)
    assert path.read_bytes() == b"id,prediction\n7,D A B\n8,B A\n9,A B C\n"


def test_a_submission_of_probabilities_has_a_column_a_letter(tmp_path):
    path = tmp_path / "submission.csv"
    write_label_submission(path, [make_scores("7", [0, 0]), make_scores("8", [0, 0, 0, 0])])
    assert path.read_text() == "id,A,B,C,D\n7,0.5,0.5,0.0,0.0\n8,0.25,0.25,0.25,0.25\n"


def test_submission_reaches_the_last_of_26_letters(tmp_path):
    write_submission(tmp_path / "s.csv", [make_scores("1", range(26))])
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "1,Z Y X"


@pytest.mark.parametrize(
    "question_id", ["a,b", 'say "x"', " padded ", "two\nlines", "carriage\rreturn", "\u00e9"]
)
def test_submission_ids_survive_a_csv_reader(tmp_path, question_id):
    write_submission(tmp_path / "s.csv", [make_scores(question_id, [1, 2])])
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["id", "prediction"], [question_id, "B A"]]


def test_scores_columns_and_types(tmp_path):
    path = tmp_path / "scores.parquet"
    write_scores(path, [make_scores("a", [1, 3, 2], 2, {"big": [1, 2, 3]}), make_scores("b", [0, 1])])
    table = pq.read_table(path)
    types = {field.name: re.sub(r"<\w+: (\w+)>", r"<\1>", str(field.type)) for field in table.schema}
    columns = ["id", "scores", "probabilities", "order", "margin", "answer", "member_big"]
    kinds = ["string", "list<double>", "list<double>", "list<int32>", "double", "int32", "list<double>"]
    assert list(types.items()) == list(zip(columns, kinds, strict=True))
    assert table["order"].to_pylist() == [[1, 2, 0], [1, 0]]
    assert table["answer"].to_pylist() == [2, None]
    assert table["member_big"].to_pylist() == [[1.0, 2.0, 3.0], None]
    assert table["margin"].to_pylist()[1] == pytest.approx(np.tanh(0.5), abs=1e-6)


def test_scores_round_trip(tmp_path):
    # A member may carry the name of a column of ours.
    path = tmp_path / "scores.parquet"
    written = [make_scores("007", [1, 3, 2], 2, {"scores": [1, 2, 3]}), make_scores("b", [0, 1])]
    write_scores(path, written)
    for row, found in zip(written, read_scores(path), strict=True):
        assert found.question.id == row.question.id
        assert found.question.answer == row.question.answer
        assert len(found.question.options) == len(row.scores)
        assert (found.order, found.margin) == (row.order, pytest.approx(row.margin))
        np.testing.assert_array_equal(found.scores, row.scores)
        np.testing.assert_array_equal(found.probabilities, row.probabilities)
        assert {name: list(member) for name, member in found.member_scores.items()} == {
            name: list(member) for name, member in row.member_scores.items()
        }


def test_scores_of_no_question(tmp_path):
    write_scores(tmp_path / "scores.parquet", [])
    assert read_scores(tmp_path / "scores.parquet") == []


def test_reading_something_else_names_the_file(tmp_path):
    (tmp_path / "text.parquet").write_text("id,prediction\n")
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "other.parquet")
    for name, reason in (("text", "expected"), ("other", "no column 'scores'"), ("absent", "expected")):
        with pytest.raises(InputError, match=rf"{name}\.parquet.*{reason}"):
            read_scores(tmp_path / f"{name}.parquet")


def make_prompt(question_id="q", text="Caf\u00e9\u2028x"):
    question = Question(id=question_id, prompt="p", options=("x", "y"))
    letters = Branch(
        option=np.int64(1),
        order=(1, 0),
        label="A",
        token_ids=np.array([1, 5, 9], dtype=np.int32),
        text=text,
        targets=(Target(position=2, token_id=np.int32(9)), Target(position=3, token_id=4)),
    )
    classifier = replace(letters, order=(), label=None, targets=(Target(position=2, token_id=None),))
    return Prompt(question=question, branches=(letters, classifier))


def test_prompts_hold_what_the_contract_says(tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", [make_prompt(), make_prompt("r")])
    # splitlines() also splits at U+2028, so that this fails if the text were written raw.
    first, second = (json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines())
    shared = {"option": 1, "ids": [1, 5, 9], "text": "Caf\u00e9\u2028x"}
    letters = shared | {"order": [1, 0], "label": "A", "targets": [[2, 9], [3, 4]]}
    classifier = shared | {"order": [], "label": None, "targets": [[2, None]]}
    assert first == {"id": "q", "branches": [letters, classifier]}
    assert second["id"] == "r"


def test_prompts_are_streamed_and_absent_after_a_failure(tmp_path):
    def prompts():
        for number in range(2000):
            yield make_prompt(str(number))
        (part,) = tmp_path.iterdir()
        assert part.name != "prompts.jsonl"
        assert part.stat().st_size > 0
        raise ValueError("tokenizer broke")

    with pytest.raises(ValueError, match="tokenizer broke"):
        write_prompts(tmp_path / "prompts.jsonl", prompts())
    assert os.listdir(tmp_path) == []
