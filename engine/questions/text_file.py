"""Reads texts to classify as Questions whose options are names of labels; knows nothing of models.

Columns: `text`, or `text_a` and `text_b`, or `prompt` (`question`) with the context column if there is one;
`id` (without ids, rows' numbers are ids); `label` or `answer`, a name or an id, blank where unknown;
`options`, the labels that a row may get (a list; in CSV one written as JSON), all where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from strata.engine.json_files import parse_json, shown
from strata.engine.questions.cells import as_text
from strata.engine.questions.ids import DEFAULT_ID_COLUMN, check_id_column, read_ids
from strata.engine.questions.records import Record, RecordTable, read_records
from strata.engine.types import InputError, Question, RunWarnings

TEXT_COLUMNS = (("text", None), ("text_a", "text_b"), ("prompt", None), ("question", None))
LABEL_COLUMNS = ("label", "answer")
_MIN_LABELS = 2


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Names of the columns that are read; None for what the file does not have."""

    text: str
    second: str | None
    label: str | None


def read_texts(
    path: Path,
    labels: Sequence[str],
    *,
    context_column: str = "context",
    id_column: str = DEFAULT_ID_COLUMN,
    limit: int | None = None,
    warnings: RunWarnings,
) -> list[Question]:
    """Reads and checks a file of texts (.csv, .parquet or .jsonl).

    Args:
        path: the file.
        labels: names of the classifier's labels, by id.
        context_column: the second text of rows with a prompt.
        id_column: the column that holds ids.
        limit: how many rows to read, from the first; None reads all.
        warnings: where odd rows go: "empty text", "no label" (where others have one).

    Returns:
        One a row, in the file's order, at least one: `is_text`, with the label's place as answer.

    Raises:
        InputError: what makes the job meaningless, naming file, row and column; odd rows too in a strict run.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: expected at least 1")
    table = read_records(path, limit=limit)
    if not table.records:
        raise InputError(f"{path}: no data rows, expected at least one text")
    check_id_column(path, id_column, table.columns)
    columns = _find_columns(path, table, context_column)
    by_name = {name: index for index, name in enumerate(labels)}
    ids, note = read_ids(table.records, table.columns, id_column)
    if note:
        warnings.say(f"{path}: read as {note}")
    questions = [
        _read_row(record, name, columns, labels, by_name)
        for record, name in zip(table.records, ids, strict=True)
    ]
    _report_oddities(questions, path, warnings)
    return questions


def find_labels(path: Path, *, limit: int | None = None) -> tuple[str, ...]:
    """The distinct labels of a file, sorted: as numbers where all are.

    Raises:
        InputError: no column for labels.
    """
    table = read_records(path, limit=limit)
    column = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if column is None:
        raise InputError(f"{path}: no column 'label' to take the labels from; expected one, or --labels")
    cells = (record.values.get(column) for record in table.records)
    found = {str(cell) for cell in cells if cell is not None and str(cell).strip()}
    are_numbers = all(name.isascii() and name.isdigit() for name in found)
    return tuple(sorted(found, key=int) if are_numbers else sorted(found))


def read_label_columns(
    path: Path, labels: Sequence[str], *, id_column: str = DEFAULT_ID_COLUMN, limit: int | None = None
) -> Mapping[str, np.ndarray] | None:
    """Probabilities [L] float64 of every label by a row's id, from columns called like the labels.

    Returns:
        None where the file does not have such a column for every label.

    Raises:
        InputError: a cell that is no probability, or a row of nothing but zeros.
    """
    table = read_records(path, limit=limit)
    if not set(labels) <= set(table.columns):
        return None
    found = {}
    ids, _ = read_ids(table.records, table.columns, id_column)
    for record, name in zip(table.records, ids, strict=True):
        values = np.array([_read_probability(record, label) for label in labels])
        if not values.sum() > 0:
            raise InputError(f"{record.where}: the labels' columns add up to 0; expected probabilities")
        found[name] = values / values.sum()
    return found


def _find_columns(path: Path, table: RecordTable, context_column: str) -> _Columns:
    has = frozenset(table.columns)
    for text, second in TEXT_COLUMNS:
        if text in has and (second is None or second in has):
            break
    else:
        raise InputError(
            f"{path}: column 'text' is missing; expected text, or text_a and text_b, or prompt; "
            f"found columns {', '.join(table.columns)}"
        )
    if text in ("prompt", "question") and context_column in has:
        second = context_column
    elif context_column != "context" and context_column not in has:
        raise InputError(f"{path}: --context-column {context_column!r} is not a column of the file")
    label = next((name for name in LABEL_COLUMNS if name in has), None)
    return _Columns(text=text, second=second, label=label)


def _read_row(
    record: Record, question_id: str, columns: _Columns, labels: Sequence[str], by_name: Mapping[str, int]
) -> Question:
    options = _read_options(record, by_name) or tuple(labels)
    return Question(
        id=question_id,
        prompt=_read_text(record, columns.text),
        options=options,
        answer=None if columns.label is None else _read_answer(record, columns.label, options, labels),
        context="" if columns.second is None else _read_text(record, columns.second),
        row=record.row,
        is_text=True,
    )


def _read_text(record: Record, column: str) -> str:
    return as_text(record.values.get(column), f"{record.where}, column {column!r}") or ""


def _read_options(record: Record, by_name: Mapping[str, int]) -> tuple[str, ...] | None:
    """The labels that a row names; None where it names none."""
    cell, where = record.values.get("options"), f"{record.where}, column 'options'"
    if isinstance(cell, str) and cell.strip():
        cell = parse_json(cell, where)
    if cell is None or cell == "":
        return None
    if not isinstance(cell, (list, tuple)) or not all(isinstance(name, str) for name in cell):
        raise InputError(f"{where}: {shown(cell)}; expected a list of names of labels")
    unknown = next((name for name in cell if name not in by_name), None)
    if unknown is not None:
        raise InputError(f"{where}: {unknown!r} is no label; expected names such as {_some(list(by_name))}")
    if len(set(cell)) < len(cell) or len(cell) < _MIN_LABELS:
        raise InputError(f"{where}: {shown(cell)}; expected two labels or more, each once")
    return tuple(cell)


def _read_answer(record: Record, column: str, options: Sequence[str], labels: Sequence[str]) -> int | None:
    """The place of the row's label among its options; names go before ids."""
    value, where = record.values.get(column), f"{record.where}, column {column!r}"
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if name not in labels and name.strip().isascii() and name.strip().isdigit():
        name = labels[int(name)] if int(name) < len(labels) else name
    if name not in options:
        what = "not one of the row's options" if name in labels else "no label"
        ids = f"or an id from 0 to {len(labels) - 1}"
        raise InputError(
            f"{where}: {shown(value)} is {what}; expected a name such as {_some(options)}, {ids}"
        )
    return list(options).index(name)


def _read_probability(record: Record, column: str) -> float:
    value, where = record.values.get(column), f"{record.where}, column {column!r}"
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < np.inf:
        raise InputError(f"{where}: {shown(value)}; expected a probability")
    return number


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3]))


def _report_oddities(questions: Sequence[Question], path: Path, warnings: RunWarnings) -> None:
    has_labels = any(question.answer is not None for question in questions)
    for question in questions:
        where = f"{path}, row {question.row}"
        if not question.prompt:
            warnings.odd_row("empty text", question.id, where)
        if has_labels and question.answer is None:
            warnings.odd_row("no label", question.id, where)
