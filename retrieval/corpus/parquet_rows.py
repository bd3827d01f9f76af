"""Rows of Parquet files as plain values, one at a time. Knows nothing of what a column means."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from strata.engine.types import InputError
from strata.retrieval.library_errors import library_errors

BATCH_ROWS = 256
MAX_RATIO = 300
MIN_EXPANDED_BYTES = 64 << 20
"""A row group may be larger than this only if it is less than MAX_RATIO times the file."""


def read_parquet_rows(path: Path, wanted: Collection[str | None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number from one, values by column).

    Strings that a file stores once for many rows stay so until their row comes: memory is one small batch.

    Args:
        path: the file.
        wanted: columns to read, as far as the file has them.

    Raises:
        InputError: naming the file, and row and column where it is one value that cannot be read.
    """
    row = 0
    for batch in _read_batches(path, wanted):
        for place in range(batch.num_rows):
            row += 1
            yield (
                row,
                {
                    name: _value(column, place, f"{path}: row {row}: {name}")
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                },
            )


def _read_batches(path: Path, wanted: Collection[str | None]) -> Iterator[pa.RecordBatch]:
    with library_errors(lambda reason: InputError(f"{path}: cannot be read as Parquet ({reason})")):
        schema = pq.read_schema(path)
        texts = [field.name for field in schema if _is_text(field.type)]
        with pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as file:
            columns = [name for name in schema.names if name in wanted]
            _refuse_bombs(path, file.metadata)
            yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns)


def _is_text(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_large_string(type)


def _refuse_bombs(path: Path, metadata: pq.FileMetaData) -> None:
    # By whole row groups: pyarrow ends the process over a column whose entry in the footer is broken.
    num_bytes = path.stat().st_size
    for group in range(metadata.num_row_groups):
        expanded = metadata.row_group(group).total_byte_size
        if expanded > MIN_EXPANDED_BYTES and expanded > MAX_RATIO * num_bytes:
            raise InputError(
                f"{path}: row group {group}: {expanded} bytes of a file of {num_bytes}; expected text, which "
                f"no compression makes {MAX_RATIO} times smaller"
            )


def _value(column: pa.Array, place: int, told: str) -> Any:
    with library_errors(lambda reason: InputError(f"{told}: the value cannot be read ({reason})")):
        return column[place].as_py()
