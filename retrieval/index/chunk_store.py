"""Chunks on disk: Parquet shards of a fixed number of rows. A chunk's row is its position over all shards.

Memory is bounded: the writer holds one shard at most, the reader a few row groups. Knows nothing of how a
shard is searched.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from strata.engine.files import write_atomically
from strata.engine.json_files import shown
from strata.engine.types import InputError
from strata.retrieval.index.manifest import CHUNKS_PART, MANIFEST_FILE, Manifest, check_part, read_manifest
from strata.retrieval.library_errors import one_line
from strata.retrieval.types import Chunk

ROWS_PER_GROUP = 1_000
"""Rows that are read together: half a MiB of 512-character chunks."""

NUM_CACHED_GROUPS = 64
FIELDS = ("id", "page", "title", "section", "text")
SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in FIELDS])


def shard_file(number: int) -> str:
    """A shard's path in the index folder."""
    return f"{CHUNKS_PART}/{number:05d}.parquet"


class ChunkWriter:
    """Collects chunks and writes a shard whenever one is full.

    Args:
        folder: the index folder.
        chunks_per_shard: rows of every shard but the last.
        num_shards: shards that are there already; the next gets this number.
    """

    def __init__(self, folder: Path, chunks_per_shard: int, num_shards: int = 0) -> None:
        self._folder = folder
        self.chunks_per_shard = chunks_per_shard
        self._num_shards = num_shards
        self._chunks: list[Chunk] = []

    @property
    def num_waiting(self) -> int:
        """Chunks that no shard holds yet."""
        return len(self._chunks)

    def add(self, chunk: Chunk) -> str | None:
        """Takes a chunk; returns the path of the shard that it filled, if it did."""
        self._chunks.append(chunk)
        return self.flush() if len(self._chunks) == self.chunks_per_shard else None

    def flush(self) -> str | None:
        """Writes what is waiting as the last shard; returns its path, None when nothing waits."""
        if not self._chunks:
            return None
        file = shard_file(self._num_shards)
        columns = {name: [getattr(chunk, name) for chunk in self._chunks] for name in FIELDS}
        table = pa.table(columns, schema=SCHEMA)
        write_atomically(self._folder / file, lambda path: _write_table(table, path))
        self._num_shards += 1
        self._chunks.clear()
        return file


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(
        table,
        path,
        row_group_size=ROWS_PER_GROUP,
        compression="zstd",
        use_dictionary=["page", "title", "section"],
        write_page_checksum=True,
    )


class ChunkStore:
    """Reads an index folder's chunks, by row or one after the other.

    Args:
        folder: an index folder with a manifest.
        digests: see `check_part`; a damaged page is noticed when it is read in any case.

    Raises:
        InputError: no index, another version, or a shard that is missing, cut short or damaged.
    """

    def __init__(self, folder: Path, *, digests: bool | None = None) -> None:
        manifest = read_manifest(folder)
        check_part(folder, manifest, CHUNKS_PART, digests=digests)
        self._open(folder, manifest)

    def _open(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._files = shard_paths(folder, manifest.parts[CHUNKS_PART]["files"], MANIFEST_FILE)
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self.shard_rows = tuple(count_rows(path) for path in self._files)
        if sum(self.shard_rows) != manifest.num_chunks:
            raise InputError(
                f"{folder / MANIFEST_FILE}: num_chunks is {manifest.num_chunks}, and the shards hold "
                f"{sum(self.shard_rows)}; build the index again"
            )
        for path, num_rows in zip(self._files[:-1], self.shard_rows[:-1], strict=True):
            if num_rows != self.shard_rows[0]:
                raise InputError(
                    f"{path}: {num_rows} chunks; expected {self.shard_rows[0]} as in the first shard"
                )

    def __len__(self) -> int:
        return sum(self.shard_rows)

    @property
    def num_shards(self) -> int:
        """Number of shards; `shard_rows` holds the rows of each."""
        return len(self._files)

    def first_row(self, shard: int) -> int:
        """The row of a shard's first chunk."""
        return sum(self.shard_rows[:shard])

    def chunks(self, rows: Sequence[int]) -> list[Chunk]:
        """The chunks at these rows, in the order given.

        Raises:
            IndexError: a row is negative or past the last chunk.
            InputError: a shard cannot be read.
        """
        found: dict[int, Chunk] = {}
        for row in sorted({int(row) for row in rows}):
            found[row] = self._chunk(row)
        return [found[int(row)] for row in rows]

    def _chunk(self, row: int) -> Chunk:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of an index of {len(self)} chunks")
        shard = row // self.shard_rows[0]
        group, place = divmod(row - shard * self.shard_rows[0], ROWS_PER_GROUP)
        return _read_chunks(self._files[shard], self._group(shard, group).slice(place, 1))[0]

    def _group(self, shard: int, group: int) -> pa.Table:
        if (shard, group) not in self._groups:
            while len(self._groups) >= NUM_CACHED_GROUPS:
                self._groups.popitem(last=False)
            self._groups[shard, group] = _read_group(self._files[shard], group)
        self._groups.move_to_end((shard, group))
        return self._groups[shard, group]

    def read_shard(self, shard: int) -> Iterator[Chunk]:
        """Yields a shard's chunks in order, one row group in memory at a time."""
        num_groups = -(-self.shard_rows[shard] // ROWS_PER_GROUP)
        for group in range(num_groups):
            yield from _read_chunks(self._files[shard], _read_group(self._files[shard], group))

    def __iter__(self) -> Iterator[Chunk]:
        for shard in range(self.num_shards):
            yield from self.read_shard(shard)


def shard_paths(folder: Path, files: Collection[str], listed_in: str) -> list[Path]:
    """The shards that a manifest or journal lists, in order.

    Raises:
        InputError: it lists another file, or leaves one out.
    """
    for number, file in enumerate(sorted(files)):
        if file != shard_file(number):
            raise InputError(
                f"{folder / listed_in}: the chunks' file {number} is {shown(file)}; expected "
                f"{shard_file(number)!r}"
            )
    return [folder / shard_file(number) for number in range(len(files))]


def count_rows(path: Path) -> int:
    """The number of a shard's chunks, by its footer.

    Raises:
        InputError: it is broken, or no shard of chunks.
    """
    try:
        metadata = pq.read_metadata(path)
        found = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise broken_shard(path, error) from None
    if not found.equals(SCHEMA):
        raise broken_shard(path, f"its columns are {shown(found.names)}; expected text in {list(FIELDS)}")
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if any(num_rows != ROWS_PER_GROUP for num_rows in rows[:-1]):
        raise broken_shard(path, f"row groups of other than {ROWS_PER_GROUP} rows")
    return sum(rows)


def _read_group(path: Path, group: int) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read_row_group(group, columns=list(FIELDS))
    except (pa.ArrowException, OSError) as error:
        raise broken_shard(path, error) from None


def _read_chunks(path: Path, table: pa.Table) -> list[Chunk]:
    try:
        return [Chunk(**record) for record in table.to_pylist()]
    except UnicodeDecodeError as error:
        raise broken_shard(path, error) from None


def broken_shard(path: Path, error: Exception | str) -> InputError:
    """The error of a shard that cannot be read."""
    reason = error if isinstance(error, str) else one_line(error)
    return InputError(f"{path}: cannot be read as a shard of chunks ({reason}); build the index again")
