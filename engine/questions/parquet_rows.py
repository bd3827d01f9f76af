"""Cells of Parquet files as plain values; one that Python has no value for is refused only if it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.engine.questions.source_file import MAX_BYTES, SourceFile
from strata.engine.types import InputError

if TYPE_CHECKING:
    import pyarrow

MAX_COLUMNS = 1_000


@dataclass(frozen=True)
class Unreadable:
    """A cell whose value is out of range: `kind` is its type in the file."""

    kind: str


def check_columns(path: Path, num_columns: int) -> None:
    """Raises InputError for a file of more columns than a question file has."""
    if num_columns > MAX_COLUMNS:
        raise InputError(f"{path}: {num_columns:,} columns; expected at most {MAX_COLUMNS:,}")


def read_parquet_columns(source: SourceFile, limit: int | None) -> dict[str, list[Any]]:
    """The cells of each column, those of the first `limit` rows.

    Raises:
        InputError: not a readable Parquet file, or too much of it.
    """
    import pyarrow
    import pyarrow.parquet

    path = source.path
    try:
        with pyarrow.parquet.ParquetFile(
            path if source.data is None else pyarrow.BufferReader(source.data)
        ) as file:
            check_columns(path, len(file.schema_arrow.names))
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > MAX_BYTES:
                raise InputError(
                    f"{path}: more than {MAX_BYTES >> 20:,} MiB of content; expected at most that"
                )
            table = file.read().slice(0, limit)
        return {name: _cells(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file ({reason})") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: a text column is not UTF-8 ({error.reason}), expected UTF-8 text"
        ) from error


def _cells(column: pyarrow.ChunkedArray) -> list[Any]:
    import pyarrow.types as kinds

    kind = column.type
    inner = kind.value_type if kinds.is_list(kind) or kinds.is_large_list(kind) else kind
    try:
        cells = column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError):
        cells = [_cell(scalar) for scalar in column]
    if kinds.is_float32(inner) or kinds.is_float16(inner):
        narrow = np.float32 if kinds.is_float32(inner) else np.float16
        return [_as_narrow(cell, narrow) for cell in cells]
    if kinds.is_temporal(kind) or kinds.is_decimal(kind):
        return [cell if cell is None or isinstance(cell, Unreadable) else str(cell) for cell in cells]
    return cells


def _cell(scalar: pyarrow.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        return Unreadable(str(scalar.type))


def _as_narrow(cell: Any, narrow: type[np.floating]) -> Any:
    """The digits of the narrow number: 0.1, where as a double it would be 0.10000000149011612."""
    if isinstance(cell, list):
        return [_as_narrow(item, narrow) for item in cell]
    return None if cell is None or cell != cell else str(narrow(cell))
