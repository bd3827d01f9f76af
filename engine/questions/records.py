"""Reads the rows of a CSV, Parquet or JSON Lines file as plain records; knows nothing of questions."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from strata.engine.questions.parquet_rows import check_columns, read_parquet_columns
from strata.engine.questions.source_file import SourceFile, open_source
from strata.engine.types import InputError

# The largest field size that fits a C long everywhere.
_MAX_FIELD_CHARACTERS = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """One data row as the file gives it.

    `row` is the one-based data row (the line number for JSONL) and `where` names file and row for messages.
    In `values` an absent or null cell is None; CSV cells are always text, and numbers keep the file's own
    type.
    """

    row: int
    where: str
    values: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class RecordTable:
    """All data rows of a file, in order.

    `columns` are the names found (for JSONL those of any row). `has_blank_cells` is True for formats that
    cannot tell an absent cell from an empty one (CSV). `notes` say how a file was read that is not plain.
    """

    columns: tuple[str, ...]
    records: list[Record]
    has_blank_cells: bool = False
    notes: tuple[str, ...] = ()


def read_records(path: Path, *, limit: int | None = None) -> RecordTable:
    """Reads a file's data rows, the format told by its suffix (see `SourceFile`).

    Args:
        path: the file; text formats are UTF-8, or UTF-16 with a byte order mark.
        limit: how many data rows to take, from the first; None takes all. Later rows are not looked at.

    Raises:
        InputError: no such file, an empty file, an unsupported suffix, or a file that is not of its format.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a directory, expected a question file")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty, expected questions")
    source = open_source(path)
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet, ".jsonl": _read_jsonl}
    reader = readers.get(source.suffix)
    if reader is None:
        raise InputError(
            f"{path}: unsupported suffix {source.suffix!r}, expected .csv, .parquet or .jsonl "
            "(or .tsv, or one of these as .gz or .zip)"
        )
    return reader(source, limit)


def _read_csv(source: SourceFile, limit: int | None) -> RecordTable:
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    path = source.path
    text, notes = source.read_text()
    delimiter = "\t" if source.suffix == ".tsv" else _find_delimiter(text)
    if delimiter != ",":
        notes = (*notes, "tab-separated" if delimiter == "\t" else f"separated by {delimiter!r}")
    # strict: otherwise a quote that is never closed swallows the rest of the file without a word.
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    columns: tuple[str, ...] = ()
    records: list[Record] = []
    try:
        for cells in rows:
            if not cells:
                continue
            if not columns:
                columns = _csv_header(path, cells)
                continue
            if limit is not None and len(records) == limit:
                break
            records.append(_csv_record(path, len(records) + 1, columns, cells))
    except csv.Error as error:
        raise InputError(
            f"{path}, row {len(records) + 1} (line {rows.line_num}): not valid CSV ({error})"
        ) from error
    if not columns:
        raise InputError(f"{path}: the file is empty, expected a header and questions")
    return RecordTable(columns=columns, records=records, has_blank_cells=True, notes=notes)


def _find_delimiter(text: str) -> str:
    """A comma, unless the header has none and has what some spreadsheets write instead."""
    header = text.lstrip().partition("\n")[0]
    return "," if "," in header else next((mark for mark in "\t;" if mark in header), ",")


def _csv_header(path: Path, cells: list[str]) -> tuple[str, ...]:
    columns = tuple(cell.strip() for cell in cells)
    check_columns(path, len(columns))
    for column, count in Counter(columns).items():
        if column and count > 1:
            raise InputError(f"{path}, header: column {column!r} is there twice, expected each name once")
    return columns


def _csv_record(path: Path, row: int, columns: tuple[str, ...], cells: list[str]) -> Record:
    where = f"{path}, row {row}"
    if len(cells) > len(columns):
        raise InputError(f"{where}: {len(cells)} cells, expected {len(columns)} as in the header")
    cells = cells + [""] * (len(columns) - len(cells))
    return Record(row=row, where=where, values=dict(zip(columns, cells, strict=True)))


def _read_jsonl(source: SourceFile, limit: int | None) -> RecordTable:
    path, (text, notes) = source.path, source.read_text()
    records: list[Record] = []
    columns: dict[str, None] = {}
    # Only \n ends a line: JSON text may hold the other characters that str.splitlines cuts at.
    for number, line in enumerate(text.split("\n"), start=1):
        if limit is not None and len(records) == limit:
            break
        if not line.strip():
            continue
        record = Record(
            row=number, where=f"{path}, line {number}", values=_parse_json_line(path, number, line)
        )
        columns.update(dict.fromkeys(record.values))
        check_columns(path, len(columns))
        records.append(record)
    return RecordTable(columns=tuple(columns), records=records, notes=notes)


def _parse_json_line(path: Path, number: int, line: str) -> Mapping[str, object]:
    try:
        # Fractions keep the file's own digits; NaN and Infinity, which are no JSON, count as null.
        values = json.loads(line, parse_float=str, parse_constant=lambda name: None)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {number}: not valid JSON ({error.msg} at character {error.colno})"
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}, line {number}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}, line {number}: is a JSON {type(values).__name__}, expected an object")
    return values


def _read_parquet(source: SourceFile, limit: int | None) -> RecordTable:
    path, columns = source.path, read_parquet_columns(source, limit)
    rows = zip(*columns.values(), strict=True)
    records = [
        Record(
            row=row,
            where=f"{path}, row {row}",
            values={name: _no_nan(cell) for name, cell in zip(columns, cells, strict=True)},
        )
        for row, cells in enumerate(rows, start=1)
    ]
    return RecordTable(columns=tuple(columns), records=records, notes=source.notes)


def _no_nan(cell: object) -> object:
    return None if isinstance(cell, float) and math.isnan(cell) else cell
