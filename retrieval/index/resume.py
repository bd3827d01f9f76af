"""Where an interrupted build goes on: its journal's counts held against its shards and the corpus.

A count that is wrong would leave pages out of the index, or put them in twice, without a word. Knows nothing
of how chunks are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from strata.engine.json_files import shown
from strata.engine.types import InputError
from strata.retrieval.index.chunk_store import broken_shard, count_rows, shard_paths
from strata.retrieval.index.journal import JOURNAL_FILE, BuildJournal
from strata.retrieval.types import Page


@dataclass(frozen=True, kw_only=True)
class WrittenPages:
    """What shards hold of pages: how many have chunks there, and the last one's id and chunks."""

    num_pages: int = 0
    last_page: str | None = None
    num_chunks_of_last: int = 0


def skip_written_pages(journal: BuildJournal, pages: Iterator[Page]) -> Iterator[Page]:
    """The pages that the shards do not hold wholly; reads the others and passes over them.

    Args:
        journal: of the build, as it was opened.
        pages: of the corpus, in order.

    Raises:
        InputError: naming the journal and the count that is not that of the shards or the corpus.
    """
    written = check_counts(journal)
    progress = journal.progress
    num_passed = sum(1 for _ in islice(pages, progress.num_pages))
    if num_passed < progress.num_pages:
        raise _wrong_count(journal, "num_pages", f"{progress.num_pages}, and the corpus has {num_passed}")
    if not progress.files and not progress.is_whole:
        return pages
    following = next(pages, None)
    # A shard that does not end inside a page is the last one.
    expected = written.last_page if progress.num_chunks_of_next else None
    if (following and following.id) != expected:
        found = shown(following.id) if following else "none"
        raise _wrong_count(
            journal,
            "num_pages",
            f"{progress.num_pages}, and the page after them is {found}, not {expected!r}",
        )
    return chain([following] if following else [], pages)


def check_counts(journal: BuildJournal) -> WrittenPages:
    """Holds a journal's counts against the shards; returns what those hold.

    Raises:
        InputError: naming the journal and the count, or a shard that is broken.
    """
    progress = journal.progress
    shards = shard_paths(journal.folder, progress.files, JOURNAL_FILE)
    num_chunks = sum(count_rows(shard) for shard in shards)
    written = count_pages(shards)
    num_whole = written.num_pages - (progress.num_chunks_of_next > 0)
    expected = {
        "num_chunks": num_chunks,
        "num_chunks_of_next": written.num_chunks_of_last * (progress.num_chunks_of_next > 0),
        "num_pages": num_whole + progress.num_empty + progress.num_dropped,
    }
    for name, count in expected.items():
        if (found := getattr(progress, name)) != count:
            raise _wrong_count(journal, name, f"{found}, and by the shards it is {count}")
    if progress.is_whole and progress.num_chunks_of_next:
        raise _wrong_count(
            journal, "is_whole", f"true, and {progress.num_chunks_of_next} chunks are of a page begun"
        )
    return written


def count_pages(shards: Sequence[Path]) -> WrittenPages:
    """Counts the pages whose chunks these shards hold, a page's chunks being neighbours."""
    num_pages, last_page, num_of_last = 0, None, 0
    for shard in shards:
        pages = _read_pages_column(shard)
        starts = [0, *(pc.indices_nonzero(pc.not_equal(pages[1:], pages[:-1])).to_pylist())]
        goes_on = pages[0].as_py() == last_page
        num_pages += len(starts) if not goes_on else len(starts) - 1
        last_start = starts[-1] + 1 if len(starts) > 1 else 0
        num_of_last = len(pages) - last_start + (num_of_last if goes_on and not last_start else 0)
        last_page = pages[-1].as_py()
    return WrittenPages(num_pages=num_pages, last_page=last_page, num_chunks_of_last=num_of_last)


def _read_pages_column(shard: Path) -> pa.Array:
    try:
        pages = pq.read_table(shard, columns=["page"])["page"].combine_chunks()
        pages.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise broken_shard(shard, error) from None
    if not len(pages):
        raise broken_shard(shard, "it holds no chunk")
    return pages


def _wrong_count(journal: BuildJournal, name: str, told: str) -> InputError:
    return InputError(
        f"{journal.folder / JOURNAL_FILE}: {name} is {told}; expected the journal of this build: remove the "
        "folder and build again"
    )
