"""Ids of questions: those of a column, or rows' numbers where a file has none. Knows nothing of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from strata.engine.questions.cells import as_text
from strata.engine.questions.records import Record
from strata.engine.types import InputError

DEFAULT_ID_COLUMN = "id"
ROW_NUMBERS = "row numbers for ids (no column 'id'; --id-column names another)"
"""What is said of a file without ids."""

_WHOLE_FLOAT = re.compile(r"\d+\.0", re.ASCII)


def check_id_column(path: Path, column: str, columns: Sequence[str]) -> None:
    """Raises InputError when ids are asked for from a column that a file does not have."""
    if column != DEFAULT_ID_COLUMN and column not in columns:
        raise InputError(
            f"{path}: --id-column {column!r} is not a column of the file; found columns {', '.join(columns)}"
        )


def read_ids(records: Sequence[Record], columns: Sequence[str], column: str) -> tuple[list[str], str]:
    """Ids as texts, one a row, and what to say of how they were read.

    1.0, 2.0, ... are what pandas makes of whole numbers beside an absent one.

    Args:
        records: the rows.
        columns: those of the file, under our names.
        column: the one that holds ids; rows' numbers are ids where the default one is not there.

    Raises:
        InputError: a row without an id, or one of an earlier row.
    """
    if column not in columns:
        return [str(record.row) for record in records], ROW_NUMBERS
    ids = [read_id(record, column) for record in records]
    rows: dict[str, str] = {}
    for record, name in zip(records, ids, strict=True):
        if name in rows:
            raise InputError(
                f"{record.where}, column {column!r}: duplicate id {name!r}, already used in "
                f"{rows[name].rpartition(', ')[2]}; expected each id once"
            )
        rows[name] = record.where
    if all(_WHOLE_FLOAT.fullmatch(name) for name in ids):
        return [name.removesuffix(".0") for name in ids], "ids as whole numbers (1.0 as 1)"
    return ids, ""


def read_id(record: Record, column: str) -> str:
    """The id of a row.

    Raises:
        InputError: there is none.
    """
    value = record.values.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = as_text(value, f"{record.where}, column {column!r}")
    if not text:
        raise InputError(f"{record.where}, column {column!r}: no id, expected one")
    return text
