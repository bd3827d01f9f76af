"""Reads question files into Questions and says what is wrong with them; knows nothing of prompts or models.

Two layouts are understood: Kaggle's (id, prompt, A, B, ... [, answer] [, context], one column an option)
and the generic one of Parquet and JSON Lines (id, question, options[] [, answer] [, context]), in which
options may be nested with their labels (`choices`). Without ids, rows' numbers are ids.

When a row of the Kaggle layout has fewer options than there are letter columns: in Parquet and JSON Lines the
trailing cells are null or absent. CSV cannot say null, so there trailing empty cells are no options as long
as at least two non-empty options come before them and the answer is not among them. Every other empty cell
is an empty option: kept as "", reported, scored.

Other names of columns and other forms of answers are understood where they can only mean one thing; a message
says how a file was read that is not in the plain form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from strata.engine.questions.answers import GivenAnswer, read_answers
from strata.engine.questions.cells import MAX_CHARACTERS, as_text
from strata.engine.questions.choices import unnest_choices
from strata.engine.questions.columns import ColumnNames, recognize_columns
from strata.engine.questions.ids import DEFAULT_ID_COLUMN, check_id_column, read_ids
from strata.engine.questions.records import Record, RecordTable, read_records
from strata.engine.types import LETTERS, InputError, Question, RunWarnings

_MIN_OPTIONS = 2
_MAX_OPTIONS = len(LETTERS)
_PROMPT_COLUMNS = ("prompt", "question")
_DEFAULT_CONTEXT_COLUMN = "context"
NO_CONTEXT_COLUMN = "none"
"""Given as the context column: contexts that the file has are not read."""


def read_questions(
    path: Path,
    *,
    context_column: str = _DEFAULT_CONTEXT_COLUMN,
    id_column: str = DEFAULT_ID_COLUMN,
    limit: int | None = None,
    warnings: RunWarnings,
) -> list[Question]:
    """Reads and checks a question file (.csv, .tsv, .parquet or .jsonl, or one of these as .gz or .zip).

    Args:
        path: the file.
        context_column: the column that holds the context, or "none"; any other name than the default must be
            there.
        id_column: the column that holds ids; where there is no `id`, rows' numbers are the ids.
        limit: how many rows to read, from the first; None reads all. Later rows are not checked.
        warnings: where odd rows go: "empty option", "repeated option", "fewer options than columns",
            "empty question", "missing context", "no answer", and contexts that were cut; messages say how a
            file was read that is not in the plain form, and which columns are not used.

    Returns:
        The questions in the file's order, at least one. Texts are verbatim, except that blank ones are "".

    Raises:
        InputError: what makes the job meaningless, naming file, row and column; odd rows too in a strict run.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: expected at least 1")
    table = read_records(path, limit=limit)
    return read_table(path, table, context_column=context_column, id_column=id_column, warnings=warnings)


def read_table(
    path: Path,
    table: RecordTable,
    *,
    context_column: str = _DEFAULT_CONTEXT_COLUMN,
    id_column: str = DEFAULT_ID_COLUMN,
    warnings: RunWarnings,
) -> list[Question]:
    """The questions of rows that are read; see `read_questions`. `path` names the rows in messages."""
    found = recognize_columns(path, table.columns)
    if context_column != _DEFAULT_CONTEXT_COLUMN:
        found = _without_context(found)
    check_id_column(path, id_column, table.columns)
    table, choices_note = unnest_choices(_rename_columns(table, found))
    _check_columns(path, table, context_column)
    if not table.records:
        raise InputError(f"{path}: no data rows, expected at least one question")
    ids, id_note = read_ids(table.records, table.columns, found.names.get(id_column, id_column))
    cells = [_read_options(record, table) for record in table.records]
    given = [
        _given_answer(record, options, table) for record, options in zip(table.records, cells, strict=True)
    ]
    answers, answer_note = read_answers(given, found.first_number)
    _say_how(path, (*table.notes, *found.notes, choices_note, id_note, answer_note), found.unused, warnings)
    has_context = context_column in table.columns and context_column != NO_CONTEXT_COLUMN
    questions = []
    for record, question_id, options, answer in zip(table.records, ids, cells, answers, strict=True):
        question = Question(
            id=question_id,
            prompt=_read_prompt(record),
            options=_drop_absent_options(options, answer, table.has_blank_cells),
            answer=answer,
            context=_read_context(record, context_column, question_id, warnings),
            row=record.row,
        )
        _report_oddities(question, record, table, has_context, warnings)
        questions.append(question)
    _report_missing_answers(questions, table.records, warnings)
    return questions


def _without_context(found: ColumnNames) -> ColumnNames:
    """The names where the user has said which column holds the context."""
    names = {raw: name for raw, name in found.names.items() if name != _DEFAULT_CONTEXT_COLUMN}
    notes = tuple(note for note in found.notes if not note.endswith(f"as {_DEFAULT_CONTEXT_COLUMN!r}"))
    unused = tuple(line for line in found.unused if repr(_DEFAULT_CONTEXT_COLUMN) not in line)
    return replace(found, names=names, notes=notes, unused=unused)


def _rename_columns(table: RecordTable, found: ColumnNames) -> RecordTable:
    """The table under our names."""
    if not found.names:
        return table
    records = [
        replace(record, values={found.names.get(name, name): value for name, value in record.values.items()})
        for record in table.records
    ]
    columns = tuple(found.names.get(name, name) for name in table.columns)
    return replace(table, columns=columns, records=records)


def _say_how(path: Path, notes: Sequence[str], unused: Sequence[str], warnings: RunWarnings) -> None:
    said = "; ".join(note for note in notes if note)
    if said:
        warnings.say(f"{path}: read as {said}")
    for line in unused:
        warnings.say(f"{path}: {line}")


def _read_prompt(record: Record) -> str:
    column = next((name for name in _PROMPT_COLUMNS if name in record.values), None)
    if column is None:
        raise InputError(f"{record.where}: column 'prompt' is missing; found {', '.join(record.values)}")
    return as_text(record.values.get(column), f"{record.where}, column {column!r}") or ""


def _read_context(record: Record, column: str, question_id: str, warnings: RunWarnings) -> str:
    """A context; the end of a long one, beyond what any window holds, is left out and told."""
    if column == NO_CONTEXT_COLUMN:
        return ""
    value = record.values.get(column)
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        warnings.odd_row(f"context cut at {MAX_CHARACTERS:,} characters", question_id, record.where)
        value = value[:MAX_CHARACTERS]
    return as_text(value, f"{record.where}, column {column!r}") or ""


def _given_answer(record: Record, options: list[str | None], table: RecordTable) -> GivenAnswer:
    value = record.values.get("answer")
    is_listed = not table.has_blank_cells and record.values.get("options") is not None
    return GivenAnswer(
        where=record.where,
        value=value,
        options=options,
        counts_from_zero=is_listed and not isinstance(value, str),
    )


def _check_columns(path: Path, table: RecordTable, context_column: str) -> None:
    if not table.columns:
        return
    found = f"found columns {', '.join(table.columns)}"
    if not any(name in table.columns for name in _PROMPT_COLUMNS):
        raise InputError(f"{path}: column 'prompt' is missing; {found}")
    optional = (_DEFAULT_CONTEXT_COLUMN, NO_CONTEXT_COLUMN)
    if context_column not in (*optional, *table.columns):
        raise InputError(f"{path}: --context-column {context_column!r} is not a column of the file; {found}")
    if "options" in table.columns and not table.has_blank_cells:
        return
    letters = _letter_columns(table)
    if len(letters) < _MIN_OPTIONS:
        raise InputError(f"{path}: expected at least two option columns A, B, ...; {found}")
    if letters != LETTERS[: len(letters)]:
        missing = next(letter for letter in LETTERS if letter not in letters)
        raise InputError(f"{path}: option column {missing!r} is missing before {letters[-1]!r}; {found}")


def _letter_columns(table: RecordTable) -> str:
    return "".join(letter for letter in LETTERS if letter in table.columns)


def _read_options(record: Record, table: RecordTable) -> list[str | None]:
    listed = None if table.has_blank_cells else record.values.get("options")
    if listed is None:
        letters = [letter for letter in LETTERS if letter in record.values]
        cells: Sequence[object] = [record.values.get(letter) for letter in LETTERS[: len(letters)]]
        if letters != list(LETTERS[: len(letters)]):
            raise InputError(
                f"{record.where}: options {', '.join(letters)}, expected A, B, ... without a gap"
            )
    elif isinstance(listed, (list, tuple)):
        # A null inside a list has its place there: an empty option.
        cells = ["" if cell is None else cell for cell in listed]
    else:
        raise InputError(f"{record.where}, column 'options': is a {type(listed).__name__}, expected a list")
    if not _MIN_OPTIONS <= len(cells) <= _MAX_OPTIONS:
        raise InputError(f"{record.where}: {len(cells)} option(s), expected 2 to 26")
    return [as_text(cell, f"{record.where}, option {LETTERS[index]}") for index, cell in enumerate(cells)]


def _drop_absent_options(
    cells: list[str | None], answer: int | None, has_blank_cells: bool
) -> tuple[str, ...]:
    num_kept = len(cells)
    while num_kept and (not cells[num_kept - 1] if has_blank_cells else cells[num_kept - 1] is None):
        num_kept -= 1
    if has_blank_cells and sum(bool(cell) for cell in cells) < _MIN_OPTIONS:
        num_kept = len(cells)
    num_kept = max(num_kept, _MIN_OPTIONS, 0 if answer is None else answer + 1)
    return tuple(cell or "" for cell in cells[:num_kept])


def _report_oddities(
    question: Question, record: Record, table: RecordTable, has_context: bool, warnings: RunWarnings
) -> None:
    filled = [option.strip() for option in question.options if option]
    oddities = {
        "empty question": not question.prompt,
        "empty option": len(filled) < len(question.options),
        "repeated option": len(set(filled)) < len(filled),
        "fewer options than columns": table.has_blank_cells
        and len(question.options) < len(_letter_columns(table)),
        "missing context": has_context and not question.context,
    }
    for kind, is_so in oddities.items():
        if is_so:
            warnings.odd_row(kind, question.id, record.where)


def _report_missing_answers(
    questions: Sequence[Question], records: Sequence[Record], warnings: RunWarnings
) -> None:
    if all(question.answer is None for question in questions):
        return
    for question, record in zip(questions, records, strict=True):
        if question.answer is None:
            warnings.odd_row("no answer", question.id, record.where)
