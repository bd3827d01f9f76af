"""The chunk store: rows lead to chunks whatever the shard size, and a broken shard is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from strata.engine.types import InputError
from strata.retrieval.index import chunk_store
from strata.retrieval.index.chunk_store import ChunkStore, ChunkWriter
from strata.retrieval.types import Chunk

from ..small_index import make_index, random_texts

TEXTS = random_texts(23)


@pytest.mark.parametrize("chunks_per_shard", [1, 5, 23, 100])
@pytest.mark.parametrize("rows_per_group", [2, 1000])
def test_rows_lead_to_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks_per_shard: int, rows_per_group: int
) -> None:
    monkeypatch.setattr(chunk_store, "ROWS_PER_GROUP", rows_per_group)
    monkeypatch.setattr(chunk_store, "NUM_CACHED_GROUPS", 2)
    store = make_index(tmp_path, TEXTS, chunks_per_shard=chunks_per_shard)
    assert [chunk.text for chunk in store] == TEXTS
    rows = [22, 0, 7, 7, 13]
    assert [chunk.text for chunk in store.chunks(rows)] == [TEXTS[row] for row in rows]
    assert store.chunks([3]) == [Chunk(id="3#0", page="3", title="", section="", text=TEXTS[3])]
    assert len(store) == sum(store.shard_rows) == 23
    for shard in range(store.num_shards):
        first = store.first_row(shard)
        assert [chunk.text for chunk in store.read_shard(shard)] == TEXTS[
            first : first + store.shard_rows[shard]
        ]
    assert len(store._groups) <= 2


@pytest.mark.parametrize("row", [-1, 23])
def test_rows_outside_are_refused(tmp_path: Path, row: int) -> None:
    store = make_index(tmp_path, TEXTS)
    assert store.chunks([]) == []
    with pytest.raises(IndexError, match=f"row {row} of an index of 23"):
        store.chunks([row])


def test_the_writer_holds_one_shard_at_most(tmp_path: Path) -> None:
    writer = ChunkWriter(tmp_path, chunks_per_shard=4, num_shards=2)
    chunk = Chunk(id="p#0", page="p", title="", section="", text="x")
    assert [writer.add(chunk) for _ in range(5)] == [None] * 3 + ["chunks/00002.parquet", None]
    assert writer.num_waiting == 1
    assert (writer.flush(), writer.flush()) == ("chunks/00003.parquet", None)
    assert pq.read_table(tmp_path / "chunks" / "00003.parquet").num_rows == 1


@pytest.mark.parametrize("how", ["cut", "flipped", "missing", "replaced"])
def test_a_broken_shard_is_named(tmp_path: Path, how: str) -> None:
    store = make_index(tmp_path, TEXTS, chunks_per_shard=10)
    path = store.folder / "chunks" / "00001.parquet"
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[:-1])
    elif how == "flipped":
        content[100] ^= 1
        path.write_bytes(content)
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"\0" * len(content))
    with pytest.raises(InputError, match=r"00001.parquet: "):
        ChunkStore(store.folder)


def test_a_damaged_page_of_a_large_shard_is_noticed_on_reading(tmp_path: Path) -> None:
    store = make_index(tmp_path, TEXTS)
    path = store.folder / "chunks" / "00000.parquet"
    content = bytearray(path.read_bytes())
    text = pq.read_metadata(path).row_group(0).column(4)
    content[text.data_page_offset + text.total_compressed_size - 40] ^= 0xFF
    path.write_bytes(content)
    damaged = ChunkStore(store.folder, digests=False)
    with pytest.raises(InputError, match=r"00000.parquet: cannot be read as a shard"):
        damaged.chunks([5])
