"""Writes the BM25 part of an index with tantivy; resumable, and checked when it is opened."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import tantivy

from strata.engine.files import OutputError
from strata.engine.types import InputError
from strata.retrieval.corpus.analyzer import make_analyzer
from strata.retrieval.corpus.chunk import searchable_text
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.manifest import add_part
from strata.retrieval.index_config import Language
from strata.retrieval.library_errors import library_errors, one_line
from strata.retrieval.types import ReportCount

TANTIVY_PART = "tantivy"
ANALYZER = "strata"
WRITER_BYTES = 100_000_000
LOCK_PREFIX = ".tantivy-"


def build_tantivy(
    store: ChunkStore, language: Language, report: ReportCount = lambda num_chunks: None
) -> None:
    """Adds the tantivy part to an index folder, or goes on with an interrupted attempt, shard by shard.

    The work lies in `tantivy.partial` until it is whole.

    Args:
        store: the chunks.
        language: of the analyzer; noted in the manifest.
        report: called with the number of chunks indexed so far, after each shard.

    Raises:
        OutputError: tantivy cannot write (a full disk); what was committed stays for the next call.
    """
    partial, done = store.folder / f"{TANTIVY_PART}.partial", store.folder / TANTIVY_PART
    if not done.exists():
        try:
            _write_index(store, partial, language, report)
        except ValueError as error:  # tantivy raises nothing narrower
            raise OutputError(None, " ".join(str(error).split()), str(partial)) from error
        partial.rename(done)
    files = sorted(
        path for path in done.rglob("*") if path.is_file() and not path.name.startswith(LOCK_PREFIX)
    )
    add_part(
        store.folder, TANTIVY_PART, [file.relative_to(store.folder) for file in files], language=language
    )


def _write_index(store: ChunkStore, folder: Path, language: Language, report: ReportCount) -> None:
    index, num_done = _open_partial(folder, language)
    if num_done not in [store.first_row(shard) for shard in range(store.num_shards + 1)]:
        # Not a state that commits after whole shards can leave: another corpus, or damage.
        shutil.rmtree(folder)
        index, num_done = _open_partial(folder, language)
    try:
        _add_shards(store, index, num_done, report)
    except InputError:
        raise
    except ValueError as error:
        # tantivy's only error here: the disk refuses.
        raise OutputError(errno.EIO, one_line(error), str(folder)) from error


def _add_shards(store: ChunkStore, index: Any, num_done: int, report: ReportCount) -> None:
    writer = index.writer(WRITER_BYTES)
    for shard in range(store.num_shards):
        if store.first_row(shard) >= num_done:
            for row, chunk in enumerate(store.read_shard(shard), start=store.first_row(shard)):
                document = tantivy.Document()
                document.add_text("text", searchable_text(chunk))
                document.add_unsigned("row", row)
                writer.add_document(document)
            writer.commit()
        report(store.first_row(shard) + store.shard_rows[shard])
    writer.garbage_collect_files()
    writer.wait_merging_threads()


def _open_partial(folder: Path, language: Language) -> tuple[Any, int]:
    """The index that was begun and its documents; a new one where none was, or where it is damaged."""
    try:
        with library_errors(lambda reason: InputError(f"{folder}: cannot be read ({reason})")):
            return _open(folder, language)
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        return _open(folder, language)


def _open(folder: Path, language: Language) -> tuple[Any, int]:
    folder.mkdir(parents=True, exist_ok=True)
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name=ANALYZER, index_option="freq")
    builder.add_unsigned_field("row", fast=True)
    index = tantivy.Index(builder.build(), path=str(folder))
    index.register_tokenizer(ANALYZER, make_analyzer(language))
    return index, index.searcher().num_docs
