"""Reads corpora as a stream of pages: JSONL, Parquet, plain text, BEIR folders, CirrusSearch dumps.

Files may be compressed (.gz, .bz2, .xz). One page is in memory at a time, for Parquet one small batch. Knows
nothing of chunks or indexes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.engine.json_files import parse_json
from strata.engine.types import InputError
from strata.retrieval.corpus.cirrus import CirrusRecords
from strata.retrieval.corpus.lines import OPENERS, read_lines
from strata.retrieval.corpus.parquet_rows import read_parquet_rows
from strata.retrieval.corpus.records import USUAL_NAMES, FieldNames, page_of_record
from strata.retrieval.index_config import CorpusFormat
from strata.retrieval.types import Page

SUFFIXES: Mapping[str, CorpusFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
BEIR_FILE = "corpus.jsonl"
MAX_ID_CHARS = 2_000
MAX_TITLE_CHARS = 10_000
MAX_PAGE_CHARS = 16 << 20
"""Ten times the longest page of Wikipedia, three times a long novel; its sentences are in memory at once."""

MAX_TEXT_PAGE_CHARS = 1 << 20
"""A plain text file is one page; a longer one is cut after the line that reaches so many characters."""


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """One file of a corpus and how to read it; `name` is what it is called in ids, its path in a folder."""

    path: Path
    format: CorpusFormat
    name: str


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
        return [_corpus_file(path, format, path.name)]
    if not path.is_dir():
        raise InputError(f"--corpus: {path} not found; expected a file or a folder")
    beir = [path / name for name in (BEIR_FILE, f"{BEIR_FILE}.gz") if (path / name).is_file()]
    if format in ("auto", "beir") and beir:
        return [_corpus_file(beir[0], "beir", beir[0].name)]
    if format == "beir":
        raise InputError(f"{path / BEIR_FILE}: not found; expected a BEIR folder")
    found = [file for file in sorted(path.rglob("*")) if file.is_file() and _known_format(file)]
    if not found:
        raise InputError(f"{path}: no corpus file in it; expected {BEIR_FILE} or {', '.join(SUFFIXES)} files")
    return [_corpus_file(file, format, file.relative_to(path).as_posix()) for file in found]


def _corpus_file(path: Path, format: CorpusFormat, name: str) -> CorpusFile:
    return CorpusFile(path=path, format=_format_of(path) if format == "auto" else format, name=name)


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
    raise InputError(f"{path}: cannot tell its format from its name; expected --format to say it")


def read_pages(
    paths: Sequence[Path], *, format: CorpusFormat = "auto", names: FieldNames | None = None
) -> Iterator[Page]:
    """Streams a corpus's pages; the same paths always give the same pages in the same order.

    A page without an id gets `<file>:<line or row, from one>`, a text file its name alone; a file of a
    folder is called by its path in it. Text that no UTF-8 can hold (half a surrogate pair) has it
    replaced by "?".

    Args:
        paths: files or folders.
        format: `auto` tells it by folder content and file names.
        names: for JSONL and Parquet, where id, title and text are.

    Raises:
        InputError: naming file and line or row, when something is missing, too long or cannot be read.
    """
    for _, page in read_placed_pages(paths, format=format, names=names):
        yield page


def read_placed_pages(
    paths: Sequence[Path], *, format: CorpusFormat = "auto", names: FieldNames | None = None
) -> Iterator[tuple[str, Page]]:
    """The same with the place that each page is at: file and line or row, for messages."""
    for file in list_corpus_files(paths, format):
        for place, page in _read_file(file, names or FieldNames()):
            check_lengths(page, place)
            yield place, page


def check_lengths(page: Page, place: str) -> None:
    """Refuses a page that would take all memory: its id and title are repeated in each of its chunks.

    Raises:
        InputError: naming the place and what is too long.
    """
    lengths = [("id", page.id, MAX_ID_CHARS), ("title", page.title, MAX_TITLE_CHARS)]
    lengths += [("text", page.text, MAX_PAGE_CHARS)]
    lengths += [("a heading", heading, MAX_TITLE_CHARS) for heading, _ in page.sections]
    for name, text, longest in lengths:
        if len(text) > longest:
            raise InputError(f"{place}: {name} has {len(text)} characters; expected {longest} at most")
    if sum(len(text) for _, text in page.sections) > MAX_PAGE_CHARS:
        raise InputError(f"{place}: sections have more than {MAX_PAGE_CHARS} characters in all")


def _read_file(file: CorpusFile, names: FieldNames) -> Iterator[tuple[str, Page]]:
    if file.format == "parquet":
        wanted = {*USUAL_NAMES, names.id, names.title, names.text}
        for row, record in read_parquet_rows(file.path, wanted):
            place = f"{file.path}: row {row}"
            yield place, page_of_record(record, names, place, f"{file.name}:{row}")
    elif file.format == "text":
        yield from _read_text(file)
    else:
        yield from _read_json_pages(file, names)


def _read_json_pages(file: CorpusFile, names: FieldNames) -> Iterator[tuple[str, Page]]:
    dump = CirrusRecords()
    for line, record in _read_json_lines(file.path):
        place = f"{file.path}: line {line}"
        if file.format == "cirrus":
            yield from ((place, page) for page in dump.pages(record, place))
        else:
            yield place, page_of_record(record, names, place, f"{file.name}:{line}")


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        record = parse_json(line, f"{path}: line {number}")
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number}: a {type(record).__name__}; expected a JSON object")
        yield number, record


def _read_text(file: CorpusFile) -> Iterator[tuple[str, Page]]:
    """A file is a page; beyond MAX_TEXT_PAGE_CHARS it is cut between lines, `name~1` follows `name`."""
    lines: list[str] = []
    num_chars = num_pages = 0
    for number, line in read_lines(file.path):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{file.path}: line {number}: not UTF-8 ({error.reason})") from None
        num_chars += len(lines[-1])
        if num_chars >= MAX_TEXT_PAGE_CHARS:
            yield str(file.path), _text_page(file, num_pages, lines)
            lines, num_chars, num_pages = [], 0, num_pages + 1
    if lines or not num_pages:
        yield str(file.path), _text_page(file, num_pages, lines)


def _text_page(file: CorpusFile, number: int, lines: list[str]) -> Page:
    id = f"{file.name}~{number}" if number else file.name
    return Page(id=id, title=file.path.name.split(".")[0], text="".join(lines))
