"""Question files with contexts added: every format, into itself and into the others."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strata.engine.questions.question_file import read_questions
from strata.engine.types import Question, RunWarnings
from strata.scripts.contexts.context_table import write_with_contexts

CSV_TEXT = (
    "\ufeffid,prompt,A,B,C,note,context,answer\r\n"
    '1,"What, ""this""?\nAnd that?",one,two,three,keep me,old,B\r\n'
    "2,Which?,yes,no,,,,A\r\n"
)
CONTEXTS = ['a "quoted",\ncontext', "Größe \u2028 日本"]


def questions_of(path: Path) -> list[Question]:
    return read_questions(path, warnings=RunWarnings())


def plain(questions: list[Question]) -> list[Question]:
    return [replace(question, row=0) for question in questions]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """The same two questions in the three formats, each with one more column."""
    paths = {kind: tmp_path / f"in.{kind}" for kind in ("csv", "jsonl", "parquet")}
    paths["csv"].write_bytes(CSV_TEXT.encode("utf-8"))
    rows = [
        {"id": q.id, "question": q.prompt, "options": list(q.options), "answer": q.answer, "note": 0.5}
        for q in questions_of(paths["csv"])
    ]
    paths["jsonl"].write_text("\n".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), paths["parquet"])
    return paths


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("out_kind", ["csv", "jsonl", "parquet"])
def test_questions_come_back_with_their_contexts(sources, tmp_path, kind, out_kind) -> None:
    questions = questions_of(sources[kind])
    out = tmp_path / "deep" / f"out.{out_kind}"
    write_with_contexts(sources[kind], out, questions, {"context": CONTEXTS, "context_2": ["x", ""]})
    expected = [replace(q, context=text) for q, text in zip(questions, CONTEXTS, strict=True)]
    assert plain(questions_of(out)) == plain(expected)
    second = read_questions(out, context_column="context_2", warnings=RunWarnings())
    assert [question.context for question in second] == ["x", ""]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_other_columns_of_csv_stay_and_the_context_keeps_its_place(sources, tmp_path) -> None:
    out = tmp_path / "out.csv"
    write_with_contexts(
        sources["csv"], out, questions_of(sources["csv"]), {"context": CONTEXTS, "new": ["", "n"]}
    )
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "prompt", "A", "B", "C", "note", "context", "answer", "new"]
    assert (rows[0]["note"], rows[0]["context"], rows[1]["C"], rows[1]["new"]) == (
        "keep me",
        CONTEXTS[0],
        "",
        "n",
    )


def test_other_columns_of_jsonl_and_parquet_stay(sources, tmp_path) -> None:
    for kind in ("jsonl", "parquet"):
        out = tmp_path / f"out.{kind}"
        write_with_contexts(sources[kind], out, questions_of(sources[kind]), {"context": CONTEXTS})
        rows = (
            [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
            if kind == "jsonl"
            else pq.read_table(out).to_pylist()
        )
        assert [row["note"] for row in rows] == [0.5, 0.5]


def test_a_file_may_replace_itself_and_be_cut_by_a_limit(sources) -> None:
    path = sources["csv"]
    first = questions_of(path)[:1]
    write_with_contexts(path, path, first, {"context": ["new"]})
    assert plain(questions_of(path)) == plain([replace(first[0], context="new")])


def test_no_answers_give_no_answer_column(tmp_path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text('{"id": 1, "question": "q", "options": ["a", "b"]}\n', encoding="utf-8")
    write_with_contexts(source, out, questions_of(source), {"context": ["c"]})
    assert out.read_text(encoding="utf-8") == "id,prompt,A,B,context\n1,q,a,b,c\n"


def test_a_file_that_spreadsheets_wrote_is_written_again(sources, tmp_path) -> None:
    """UTF-16 is read as questions, so that it must not fail once all contexts are found."""
    text = sources["jsonl"].read_text(encoding="utf-8")
    sources["jsonl"].write_text(text, encoding="utf-16")
    questions = questions_of(sources["jsonl"])
    out = tmp_path / "out.jsonl"
    write_with_contexts(sources["jsonl"], out, questions, {"context": CONTEXTS})
    assert [question.context for question in questions_of(out)] == CONTEXTS
    assert [json.loads(line)["note"] for line in out.read_text(encoding="utf-8").split("\n") if line] == [
        0.5,
        0.5,
    ]
