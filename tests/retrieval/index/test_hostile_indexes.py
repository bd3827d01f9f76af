"""Index folders changed by hand or damaged: one line with the file and the key, whatever opens them.

The check of a message is the key that the test changed. Digests are made to agree where the point is what the
files hold.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strata.engine.types import InputError
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.encode import encode_index
from strata.retrieval.index.manifest import file_entry
from strata.retrieval.index.vector_store import VectorStore
from strata.retrieval.open_index import open_tools
from strata.retrieval.search_config import SearchConfig
from strata.retrieval.searchers.bm25 import TantivyBm25

from ..fake_encoder import FakeEncoder
from ..small_index import make_index, random_texts

SHARD = "chunks/00000.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_index(tmp_path_factory.mktemp("hostile"), random_texts(9), chunks_per_shard=4).folder
    encode_index(folder, FakeEncoder())
    return folder


@pytest.fixture
def index(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "index"))


def open_everything(index: Path) -> None:
    config = SearchConfig(index=index, questions=Path("q.csv"), method=("bm25", "dense"), devices="cpu")
    tools = open_tools(config, encoder=FakeEncoder())
    tools.read_chunks(list(range(tools.num_rows)))
    for searcher in tools.searchers.values():
        searcher.search(["word1 word2"], 3)
    tools.close()


def set_key(content: Any, path: str, value: object) -> None:
    *parents, last = path.split("|")
    for name in parents:
        content = content[name]
    if value is ABSENT:
        del content[last]
    else:
        content[last] = value


ABSENT = object()
DEEP: Any = []
for _ in range(100):
    DEEP = [DEEP]

MANIFESTS = {
    "i_deep": ("more", DEEP, "nested too deeply"),
    "i_entry_null": (f"parts|chunks|files|{SHARD}", None, f"parts.chunks.files.{SHARD}: input should be"),
    "i_entry_missing": (f"parts|chunks|files|{SHARD}|sha256", ABSENT, "parts.*.sha256: field required"),
    "i_entry_bytes": (f"parts|chunks|files|{SHARD}|bytes", -1, "parts.*.bytes: input should be greater"),
    "i_nolang": ("settings|language", ABSENT, "settings.language: field required"),
    "i_badlang": ("settings|language", "klingon", "settings.language: input should be 'none', 'danish'"),
    "i_badlang2": ("parts|tantivy|language", "klingon", "parts.tantivy: language: input should be 'none'"),
    "i_nolang2": ("parts|tantivy|language", ABSENT, "parts.tantivy: language: field required"),
    "i_num_inf": ("num_chunks", float("inf"), "num_chunks: input should be a valid integer"),
    "i_num_huge": ("num_pages", 10**30, "num_pages: input should be less than"),
    "i_num_true": ("num_chunks", True, "num_chunks: input should be a valid integer, found True"),
    "i_num_other": ("num_chunks", 8, "num_chunks is 8, and the shards hold 9"),
    "i_version": ("format_version", "x" * 999, "format_version is 'xxx.{40,70}; expected 1"),
    "i_settings": ("settings", [], "settings: input should be"),
    "i_parts": ("parts", [], "parts: input should be"),
    "i_no_part": ("parts|tantivy", ABSENT, "no part 'tantivy'; expected one of: chunks, dense/fake"),
    "i_outside": ("parts|tantivy|files|../x", {}, r"parts.tantivy.files.\.\./x.*inside the index folder"),
    "i_absolute": ("parts|tantivy|files|/etc/x", {}, "parts.tantivy.files./etc/x.*inside the index folder"),
    "i_long_name": ("parts|tantivy|files|" + "a" * 5000, {}, "parts.tantivy.files.*at most 500 characters"),
    "i_other_file": ("parts|chunks|files|chunks/7.parquet", {}, "parts.chunks.*7.parquet.bytes: field"),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(index: Path, name: str) -> None:
    key, value, told = MANIFESTS[name]
    refused_after(index, "manifest.json", key, value, told)


ENCODERS = {
    "i_dim_str": ("dim", "24", "dim: input should be a valid integer"),
    "i_dim_0": ("dim", 0, "dim: input should be greater"),
    "i_stored": ("stored", "int4", "stored: input should be 'float16' or 'int8'"),
    "i_rows_neg": ("shard_rows", [-1], "shard_rows.0: input should be greater"),
    "i_rows_few": ("shard_rows", [4, 4], "shard_rows: 8 in all; expected the index's 9"),
    "i_other_chunks": ("chunks_sha256", "0" * 64, "made of other chunks than the index holds"),
    "i_encoder_deep": ("more", DEEP, "nested too deeply"),
    "i_prompts": ("prompts", [1], "prompts: input should be"),
    "i_max_tokens": ("max_tokens", 0, "max_tokens: input should be greater"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_descriptions(index: Path, name: str) -> None:
    key, value, told = ENCODERS[name]
    refused_after(index, "dense/fake/encoder.json", key, value, told)


def refused_after(index: Path, file: str, key: str, value: object, told: str) -> None:
    content = json.loads((index / file).read_text())
    set_key(content, key, value)
    (index / file).write_text(json.dumps(content))
    if file != "manifest.json":
        enter_digest(index, file)
    refused(lambda: open_everything(index), f"{file}: {told}")


def enter_digest(index: Path, file: str) -> None:
    manifest = json.loads((index / "manifest.json").read_text())
    for part in manifest["parts"].values():
        if file in part["files"]:
            part["files"][file] = file_entry(index / file)
    (index / "manifest.json").write_text(json.dumps(manifest))


def refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_a_whole_index_is_read(index: Path) -> None:
    open_everything(index)


COLUMNS = [(name, pa.string(), False) for name in ("id", "page", "title", "section", "text")]
SHARDS = {
    "i_schema": [("x", pa.string(), False)],
    "i_numbers": [*COLUMNS[:-1], ("text", pa.int64(), False)],
    "i_nullable": [*COLUMNS[:-1], ("text", pa.string(), True)],
}


@pytest.mark.parametrize("name", SHARDS)
def test_shards_of_other_columns(index: Path, name: str) -> None:
    schema = pa.schema([pa.field(*field) for field in SHARDS[name]])
    columns = {field.name: pa.array([1] * 4).cast(field.type) for field in schema}
    pq.write_table(pa.table(columns, schema=schema), index / SHARD)
    enter_digest(index, SHARD)
    refused(lambda: ChunkStore(index), f"{SHARD}: cannot be read as a shard of chunks .its columns are ")


def test_shards_of_other_sizes(index: Path) -> None:
    table = pq.read_table(index / SHARD)
    last = index / "chunks/00002.parquet"
    pq.write_table(table.slice(0, 3), index / SHARD)
    pq.write_table(pa.concat_tables([pq.read_table(last), table.slice(3)]), last)
    for file in (SHARD, "chunks/00002.parquet"):
        enter_digest(index, file)
    refused(lambda: ChunkStore(index), "00001.parquet: 4 chunks; expected 3 as in the first shard")


def test_a_shard_of_other_bytes_than_utf8_is_named(index: Path) -> None:
    table = pq.read_table(index / SHARD)
    broken = pa.Array.from_buffers(pa.string(), 4, pa.array([b"\xff"] * 4).buffers())
    pq.write_table(table.set_column(4, table.schema.field("text"), broken), index / SHARD)
    enter_digest(index, SHARD)
    refused(lambda: list(ChunkStore(index)), f"{SHARD}: cannot be read as a shard of chunks .*utf-8")


@pytest.mark.parametrize("suffix", [".idx", ".term", ".fast", ".fieldnorm", ".store", ".pos", "meta.json"])
@pytest.mark.parametrize("digests", [None, False])
def test_damaged_files_of_tantivy_are_named(index: Path, suffix: str, digests: bool | None) -> None:
    """With `digests=False`, as for gigabytes, it is tantivy that stumbles; the file is named still."""
    for path in [path for path in (index / "tantivy").iterdir() if path.name.endswith(suffix)]:
        path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    refused(
        lambda: TantivyBm25(index, digests=digests).search(["word1 word2"], 3),
        rf"tantivy/\w*{suffix}: damaged: its SHA-256",
    )


MAGIC = b"\x93NUMPY\x01\x00"


@pytest.mark.parametrize(
    "content", [b"", MAGIC, MAGIC + b"\x0a\x00" + b"(" * 10, MAGIC + b"\xff\xff" + b"[" * 65535]
)
def test_vectors_that_are_no_array_are_named(index: Path, content: bytes) -> None:
    file = "dense/fake/00000.npy"
    (index / file).write_bytes(content)
    enter_digest(index, file)
    refused(lambda: VectorStore(index, "fake").open_shard(0), f"{file}: cannot be read as a shard of vectors")


def test_vectors_that_ask_for_a_pickle_are_refused(index: Path) -> None:
    file = "dense/fake/00000.npy"
    np.save(index / file, np.array([{}], dtype=object), allow_pickle=True)
    enter_digest(index, file)
    refused(lambda: VectorStore(index, "fake").open_shard(0), f"{file}: cannot be read as a shard of vectors")
