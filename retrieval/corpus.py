"""Reads corpora as a stream of pages: JSONL, Parquet, plain text, BEIR folders, CirrusSearch dumps.

Files may be compressed (.gz, .bz2, .xz). One page is in memory at a time, for Parquet one small batch. Knows
nothing of chunks or indexes.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from strata.engine.types import InputError
from strata.retrieval.cirrus import CirrusRecords
from strata.retrieval.index_config import CorpusFormat
from strata.retrieval.records import USUAL_NAMES, FieldNames, page_of_record
from strata.retrieval.types import Page

OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SUFFIXES: Mapping[str, CorpusFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
BEIR_FILE = "corpus.jsonl"
PARQUET_BATCH_ROWS = 256
MAX_TEXT_PAGE_CHARS = 1 << 20
"""A plain text file is one page; a longer one is cut at the next line after so many characters."""


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """One file of a corpus and how to read it."""

    path: Path
    format: CorpusFormat


def list_corpus_files(paths: Sequence[Path], format: CorpusFormat = "auto") -> list[CorpusFile]:
    """Every file of a corpus, in the order it is read: paths as given, a folder's files by name.

    Raises:
        InputError: a path is missing, a folder holds nothing readable, or a format cannot be told.
    """
    return [file for path in paths for file in _files_at(path, format)]


def _files_at(path: Path, format: CorpusFormat) -> list[CorpusFile]:
    if path.is_file():
        if format == "beir":
            raise InputError(f"{path}: is a file; expected a BEIR folder with {BEIR_FILE}")
        return [CorpusFile(path=path, format=_format_of(path) if format == "auto" else format)]
    if not path.is_dir():
        raise InputError(f"--corpus: {path} not found; expected a file or a folder")
    beir = [path / name for name in (BEIR_FILE, f"{BEIR_FILE}.gz") if (path / name).is_file()]
    if format in ("auto", "beir") and beir:
        return [CorpusFile(path=beir[0], format="beir")]
    if format == "beir":
        raise InputError(f"{path / BEIR_FILE}: not found; expected a BEIR folder")
    found = [file for file in sorted(path.rglob("*")) if file.is_file() and _known_format(file)]
    if not found:
        raise InputError(f"{path}: no corpus file in it; expected {BEIR_FILE} or {', '.join(SUFFIXES)} files")
    return [CorpusFile(path=file, format=_format_of(file) if format == "auto" else format) for file in found]


def _known_format(path: Path) -> CorpusFormat | None:
    name = path.name.lower()
    for suffix in OPENERS:
        name = name.removesuffix(suffix)
    if "cirrussearch" in name:
        return "cirrus"
    return SUFFIXES.get(Path(name).suffix)


def _format_of(path: Path) -> CorpusFormat:
    if found := _known_format(path):
        return found
    raise InputError(f"{path}: cannot tell its format by its name; name it with --format")


def read_pages(
    paths: Sequence[Path], *, format: CorpusFormat = "auto", names: FieldNames | None = None
) -> Iterator[Page]:
    """Streams a corpus's pages; the same paths always give the same pages in the same order.

    A page without an id of its own gets `<file name>:<line or row, from one>`. Text that no UTF-8 can hold
    (half a surrogate pair) has it replaced by "?".

    Args:
        paths: files or folders.
        format: `auto` tells it by folder content and file names.
        names: for JSONL and Parquet, where id, title and text are.

    Raises:
        InputError: naming file and line, when something is missing or cannot be read.
    """
    for file in list_corpus_files(paths, format):
        yield from _read_file(file, names or FieldNames())


def _read_file(file: CorpusFile, names: FieldNames) -> Iterator[Page]:
    if file.format == "parquet":
        yield from _read_parquet(file.path, names)
    elif file.format == "text":
        yield from _read_text(file.path)
    elif file.format == "cirrus":
        records = CirrusRecords()
        for line, record in _read_json_lines(file.path):
            yield from records.pages(record, f"{file.path}: line {line}")
    else:
        for line, record in _read_json_lines(file.path):
            yield page_of_record(record, names, f"{file.path}: line {line}", f"{file.path.name}:{line}")


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from one, line) of a file, decompressed by its suffix."""
    opener: Any = OPENERS.get(path.suffix.lower(), open)
    try:
        file: BinaryIO
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be decompressed ({error})") from None


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _read_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number}: a {type(record).__name__}; expected a JSON object")
        yield number, record


def _read_text(path: Path) -> Iterator[Page]:
    """A file is a page; beyond MAX_TEXT_PAGE_CHARS it is cut between lines, `name~1` follows `name`."""
    lines: list[str] = []
    num_chars = num_pages = 0
    for number, line in _read_lines(path):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: line {number}: not UTF-8 ({error.reason})") from None
        num_chars += len(lines[-1])
        if num_chars >= MAX_TEXT_PAGE_CHARS:
            yield _text_page(path, num_pages, lines)
            lines, num_chars, num_pages = [], 0, num_pages + 1
    if lines or not num_pages:
        yield _text_page(path, num_pages, lines)


def _text_page(path: Path, number: int, lines: list[str]) -> Page:
    id = f"{path.name}~{number}" if number else path.name
    return Page(id=id, title=path.name.split(".")[0], text="".join(lines))


def _read_parquet(path: Path, names: FieldNames) -> Iterator[Page]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            wanted = {*USUAL_NAMES, names.id, names.title, names.text}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield page_of_record(record, names, f"{path}: row {row}", f"{path.name}:{row}")
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as Parquet ({reason})") from None
