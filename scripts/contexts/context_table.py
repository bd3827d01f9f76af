"""Writes a question file again with contexts added. Knows the three formats, nothing of searching.

A file that keeps its format keeps every column. In another format, the questions are written in the layout of
that: id, prompt, A, B, ... [, answer] for CSV, id, question, options[] [, answer] for the others.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from strata.engine.files import write_atomically
from strata.engine.questions.records import read_records
from strata.engine.questions.source_file import open_source
from strata.engine.types import LETTERS, Question

Columns = Mapping[str, Sequence[str]]
"""Contexts, one a question, by the column's name."""


def write_with_contexts(source: Path, out: Path, questions: Sequence[Question], columns: Columns) -> None:
    """Writes the questions with contexts, whole or not at all.

    Args:
        source: the question file.
        out: .csv, .parquet or .jsonl; may be the source.
        questions: Q questions, the file's first rows.
        columns: Q contexts each; a column that the file has already is replaced.

    Raises:
        InputError: the source cannot be read any more.
        OutputError: the file cannot be written.
    """
    kind = out.suffix.lower()
    if source.suffix.lower() == kind:
        rows = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}[kind]
        table = rows(source, len(questions))
    else:
        table = lay_out_csv(questions) if kind == ".csv" else lay_out(questions)
    write = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}[kind]
    write_atomically(out, lambda path: write(path, table, columns))


def lay_out_csv(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """One row a question: id, prompt, one column an option, answer where any is known."""
    letters = LETTERS[: max(len(question.options) for question in questions)]
    has_answers = any(question.answer is not None for question in questions)
    rows = []
    for question in questions:
        texts = dict(zip(letters, question.options, strict=False))
        row = {"id": question.id, "prompt": question.prompt} | {name: texts.get(name, "") for name in letters}
        if has_answers:
            row["answer"] = "" if question.answer is None else LETTERS[question.answer]
        rows.append(row)
    return rows


def lay_out(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """One row a question: id, question, options, answer (an index) where any is known."""
    has_answers = any(question.answer is not None for question in questions)
    return [
        {"id": question.id, "question": question.prompt, "options": list(question.options)}
        | ({"answer": question.answer} if has_answers else {})
        for question in questions
    ]


def _csv_rows(path: Path, num_rows: int) -> list[dict[str, Any]]:
    return [dict(record.values) for record in read_records(path, limit=num_rows).records]


def _jsonl_rows(path: Path, num_rows: int) -> list[dict[str, Any]]:
    text, _ = open_source(path).read_text()
    lines = [line for line in text.split("\n") if line.strip()]
    return [json.loads(line) for line in lines[:num_rows]]


def _parquet_rows(path: Path, num_rows: int) -> pa.Table:
    return pq.read_table(path).slice(0, num_rows)


def _write_csv(path: Path, rows: list[dict[str, Any]], columns: Columns) -> None:
    # A context replaces its column in place and comes last otherwise.
    names = list(dict.fromkeys([*rows[0], *columns]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow(row | {name: texts[number] for name, texts in columns.items()})


def _write_jsonl(path: Path, rows: list[dict[str, Any]], columns: Columns) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(rows):
            row = row | {name: texts[number] for name, texts in columns.items()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, table: pa.Table | list[dict[str, Any]], columns: Columns) -> None:
    if isinstance(table, list):
        table = pa.Table.from_pylist(table)
    for name, texts in columns.items():
        place = table.schema.get_field_index(name)
        values = pa.array(texts, pa.string())
        table = table.append_column(name, values) if place < 0 else table.set_column(place, name, values)
    pq.write_table(table, path)
