"""Builds an index folder: corpus -> pages -> chunk shards -> tantivy, in bounded memory, resumable.

A journal says which shards are whole; the manifest is written when all of them are, and a later part is
entered into it when it is whole. So a call after an interrupted one repeats at most one shard's work. Knows
nothing of embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from strata.engine.types import InputError
from strata.retrieval.corpus.chunk import ChunkLimit, Measure, chunk_page, limit_characters, limit_tokens
from strata.retrieval.corpus.page_ids import refuse_repeats
from strata.retrieval.corpus.pages import list_corpus_files, read_placed_pages
from strata.retrieval.corpus.records import FieldNames
from strata.retrieval.index.chunk_store import ChunkStore, ChunkWriter
from strata.retrieval.index.journal import WORK_FOLDER, BuildJournal, open_journal, remove_work
from strata.retrieval.index.manifest import (
    CHUNKS_PART,
    MANIFEST_FILE,
    Manifest,
    read_manifest,
    read_part,
    write_manifest,
)
from strata.retrieval.index.resume import skip_written_pages
from strata.retrieval.index.schemas import ChunksSchema
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.types import Page

ReportStage = Callable[[str, int], object]
"""Told what goes on: the stage ("signatures", "pages", "chunks") and how many are done."""


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build left.

    `num_resumed_chunks` were there before this call; of the pages, some had no text and some were dropped for
    resembling an earlier one.
    """

    manifest: Manifest
    num_resumed_chunks: int
    num_empty_pages: int
    num_dropped_pages: int


def build_index(config: IndexConfig, report: ReportStage = lambda stage, num_done: None) -> BuildReport:
    """Makes the chunks and the BM25 part of an index, or goes on where an interrupted call stopped.

    Peak memory: one shard of chunks, one page, tantivy's writer; with the corpus it grows by 8 bytes a page.
    Two builds of one corpus with the same settings have equal chunks and find the same.

    Args:
        config: the settings; `config.out` may hold an unfinished or finished index of the same settings.
        report: progress.

    Raises:
        InputError: the corpus cannot be read or has an id twice, or `config.out` holds something else.
    """
    from strata.retrieval.index.tantivy_index import TANTIVY_PART, build_tantivy

    config.check()
    journal = open_journal(config.out, config.settings(), describe_corpus(config))
    num_resumed = journal.progress.num_chunks
    if (config.out / MANIFEST_FILE).exists():
        num_resumed = read_manifest(config.out).num_chunks
    else:
        write_chunks(config, journal, report)
        write_manifest(config.out, _first_manifest(journal))
    if TANTIVY_PART not in read_manifest(config.out).parts:
        build_tantivy(ChunkStore(config.out), config.language, lambda num_done: report("chunks", num_done))
    remove_work(config.out)
    manifest = read_manifest(config.out)
    chunks = read_part(config.out, manifest, CHUNKS_PART, ChunksSchema)
    return BuildReport(
        manifest=manifest,
        num_resumed_chunks=num_resumed,
        num_empty_pages=chunks.num_empty_pages,
        num_dropped_pages=chunks.num_dropped_pages,
    )


def describe_corpus(config: IndexConfig) -> list[dict[str, Any]]:
    """Path, size and time of change of every file of the corpus, as the manifest holds them."""
    files = list_corpus_files(config.corpus, config.format)
    stats = [(file.path, file.path.stat()) for file in files]
    return [{"path": str(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns} for path, stat in stats]


def read_config_places(config: IndexConfig) -> Iterator[tuple[str, Page]]:
    """The pages that a configuration names, with their places."""
    names = FieldNames(id=config.id_field, title=config.title_field, text=config.text_field)
    return islice(read_placed_pages(config.corpus, format=config.format, names=names), config.limit)


def read_config_pages(config: IndexConfig) -> Iterator[Page]:
    """The pages that a configuration names."""
    return (page for _, page in read_config_places(config))


def write_chunks(config: IndexConfig, journal: BuildJournal, report: ReportStage) -> None:
    """Writes every shard that the journal does not have yet, and enters each into it."""
    progress = journal.progress
    # Pages that earlier shards hold are read again as well: their ids count.
    distinct = refuse_repeats(read_config_pages(config), lambda: read_config_places(config))
    pages = skip_written_pages(journal, distinct)
    if progress.is_whole:
        return
    limit = chunk_limit(config)
    dropped = _near_duplicates(config, report)
    writer = ChunkWriter(config.out, config.chunks_per_shard, num_shards=len(progress.files))
    for number, page in enumerate(pages, start=progress.num_pages):
        is_dropped = bool(dropped[number]) if len(dropped) else False
        is_empty = not is_dropped and not _add_page(page, limit, writer, journal)
        progress.num_pages = number + 1
        progress.num_chunks_of_next = 0
        progress.num_dropped += is_dropped
        progress.num_empty += is_empty
        report("pages", number + 1)
    num_waiting = writer.num_waiting
    if file := writer.flush():
        journal.note_shard(file, num_waiting, 0)
    journal.note_end()


def _add_page(page: Page, limit: ChunkLimit, writer: ChunkWriter, journal: BuildJournal) -> int:
    """Hands a page's chunks to the writer, but for those that earlier shards hold; returns their number."""
    num_before, num_chunks = journal.progress.num_chunks_of_next, 0
    for num_chunks, chunk in enumerate(chunk_page(page, limit), start=1):
        if num_chunks > num_before and (file := writer.add(chunk)):
            journal.note_shard(file, writer.chunks_per_shard, num_chunks)
    return num_chunks


def _near_duplicates(config: IndexConfig, report: ReportStage) -> np.ndarray:
    """[pages] bool, which to drop; empty when none shall be."""
    if config.near_duplicates is None:
        return np.zeros(0, dtype=bool)
    from strata.retrieval.corpus.near_duplicates import find_near_duplicates

    def reported() -> Iterator[Page]:
        for number, page in enumerate(read_config_pages(config), start=1):
            report("signatures", number)
            yield page

    return find_near_duplicates(reported(), config.near_duplicates, config.out / WORK_FOLDER)


def _first_manifest(journal: BuildJournal) -> Manifest:
    progress = journal.progress
    if not progress.num_chunks:
        raise InputError(
            f"--corpus: {progress.num_pages} page(s), none with text; expected something to index"
        )
    chunks = {
        "files": progress.files,
        "num_empty_pages": progress.num_empty,
        "num_dropped_pages": progress.num_dropped,
    }
    return Manifest(
        settings=journal.settings,
        corpus=tuple(journal.corpus),
        num_pages=progress.num_pages,
        num_chunks=progress.num_chunks,
        parts={CHUNKS_PART: chunks},
    )


def chunk_limit(config: IndexConfig) -> ChunkLimit:
    """How long chunks may be: characters, or tokens of the configuration's tokenizer.

    Raises:
        InputError: there is no readable tokenizer.json.
    """
    if config.chunk_tokens is None or config.tokenizer is None:
        return limit_characters(config.chunk_chars)
    return limit_tokens(config.chunk_tokens, token_measure(config.tokenizer))


def token_measure(folder: Path) -> Measure:
    """Makes a function that counts the tokens of texts, special ones left out.

    Args:
        folder: a folder with tokenizer.json.

    Raises:
        InputError: it is missing or unreadable.
    """
    from tokenizers import Tokenizer

    from strata.engine.model_files.library_errors import one_line
    from strata.engine.model_files.tokenizer_files import check_tokenizer_files

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"--tokenizer: {path} not found; expected a folder with tokenizer.json")
    check_tokenizer_files(folder)
    with one_line(f"--tokenizer: {path}", "cannot be read"):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        with one_line(f"--tokenizer: {path}", "cannot tokenize a text"):
            found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in found]

    return count
