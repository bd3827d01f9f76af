"""Corpora that are broken or meant to hurt: one line with the file and the place, soon and in little memory.

The check of a message is the place where the test put the fault. Bombs are real: compressed members of
16 MiB, repeated until they expand to gigabytes.
"""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
import resource
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strata.engine.types import InputError
from strata.retrieval.corpus.pages import MAX_PAGE_CHARS, read_pages

MEMBER_BYTES = 16 << 20
NUM_MEMBERS = 150
BLANK = b" " * 63 + b"\n"
ROWS = {"id": [str(number) for number in range(300)], "text": ["some text"] * 300}


def bomb(compress: Callable[[bytes], bytes], piece: bytes, head: bytes = b"") -> bytes:
    return (compress(head) if head else b"") + compress(piece * (MEMBER_BYTES // len(piece))) * NUM_MEMBERS


def fast_xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)


def parquet_bytes(folder: Path, columns: dict[str, object]) -> bytes:
    pq.write_table(pa.table(columns), folder / "good.bin")
    return (folder / "good.bin").read_bytes()


def broken_text() -> pa.Array:
    return pa.Array.from_buffers(pa.string(), 2, pa.array([b"fine", b"\xff\xfe"]).buffers())


def flipped(data: bytes, start: int, count: int) -> bytes:
    return data[:start] + bytes(255 - byte for byte in data[start : start + count]) + data[start + count :]


COMPRESSED = {
    "c_gzbomb": ("c.jsonl.gz", lambda: bomb(gzip.compress, b"a", b'{"text": "'), "line 1: more than "),
    "c_gzbomb_txt": ("c.txt.gz", lambda: bomb(gzip.compress, b"a"), "line 1: more than "),
    "c_gzbomb_lines": ("c.jsonl.gz", lambda: bomb(gzip.compress, BLANK), r"line \d+: .* bytes became "),
    "c_bz2bomb": ("c.jsonl.bz2", lambda: bomb(bz2.compress, b"a"), "line 1: more than "),
    "c_xzbomb_lines": ("c.txt.xz", lambda: bomb(fast_xz, BLANK), r"line \d+: .* bytes became "),
    "c_bz2bad": ("c.jsonl.bz2", lambda: flipped(bz2.compress(b'{"text": "x"}\n' * 99), 20, 9), "cannot be "),
    "c_bz2garb": ("c.jsonl.bz2", lambda: b"no bz2 at all", "cannot be decompressed .Invalid data stream"),
    "c_gzcut": ("c.jsonl.gz", lambda: gzip.compress(b'{"text": "x"}\n' * 99)[:-9], "cannot be decompressed"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_corpora(tmp_path: Path, name: str) -> None:
    file, make, told = COMPRESSED[name]
    refused(tmp_path / file, make(), told)


PARQUET = {
    "c_pq_cut": (lambda data: data[: len(data) // 2], "cannot be read as Parquet"),
    "c_pq_footer": (lambda data: data[:-80] + b"\0" * 60 + data[-20:], "cannot be read as Parquet"),
    "c_pq_body": (lambda data: flipped(data, 8, 40), "cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", PARQUET)
def test_damaged_parquet(tmp_path: Path, name: str) -> None:
    damage, told = PARQUET[name]
    refused(tmp_path / "c.parquet", damage(parquet_bytes(tmp_path, ROWS)), told)


COLUMNS = {
    "c_pq_badutf8": ({"id": ["a", "b"], "text": broken_text()}, "row 2: text: the value .*utf-8"),
    "c_pq_dur": ({"id": pa.array([1 << 62], pa.duration("s")), "text": ["a"]}, "row 1: id: the value"),
    "c_pq_time": ({"id": pa.array([1 << 62], pa.timestamp("us")), "text": ["a"]}, "row 1: id: the value"),
    "c_pq_date": ({"id": [datetime.date(2030, 1, 1)], "text": ["a"]}, "row 1: id is a date; expected text"),
    "c_pq_number": ({"text": [1.5]}, "row 1: text is a float; expected text"),
    "c_pq_bytes": ({"text": [b"x"]}, "row 1: text is a bytes; expected text"),
    "c_pq_lists": ({"text": [["a"]]}, "row 1: text is a list; expected text"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_odd_parquet_values(tmp_path: Path, name: str) -> None:
    columns, told = COLUMNS[name]
    refused(tmp_path / "c.parquet", parquet_bytes(tmp_path, columns), told)


def test_a_column_that_expands_without_end(tmp_path: Path) -> None:
    table = pa.table({"text": ["x" * (70 << 20)]})
    pq.write_table(
        table, tmp_path / "c.parquet", compression="zstd", use_dictionary=False, write_statistics=False
    )
    refused(tmp_path / "c.parquet", None, "row group 0: .* bytes of a file of ")


def test_a_long_text_that_is_stored_once_for_many_rows_stays_so(tmp_path: Path) -> None:
    """The check: 400 rows of 4 MiB would take 1.6 GiB; memory grows by less than a quarter of it."""
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["x" * (4 << 20)]))
    pq.write_table(pa.table({"text": once}), tmp_path / "c.parquet", compression="zstd")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(len(page.text) for page in read_pages([tmp_path / "c.parquet"])) == 400 * (4 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


RECORDS = {
    "c_10mb_text": ({"text": "x" * (MAX_PAGE_CHARS + 1)}, "line 1: text has 16777217 characters"),
    "c_sections": ({"sections": [["h", "x" * MAX_PAGE_CHARS], ["h", "x"]]}, "line 1: (text|sections) ha"),
    "c_long_id": ({"id": "x" * 2_001, "text": ""}, "line 1: id has 2001 characters"),
    "c_long_title": ({"title": "x" * 10_001, "text": ""}, "line 1: title has 10001 characters"),
    "c_long_heading": ({"sections": [["x" * 10_001, ""]]}, "line 1: a heading has 10001"),
    "c_many_names": ({f"a\n{number}": 1 for number in range(1000)}, r"line 1: no text; .*, \.\.\."),
    "c_long_name": ({"x" * 100_000: 1}, "line 1: no text; .{100,300}$"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_hold_too_much(tmp_path: Path, name: str) -> None:
    record, told = RECORDS[name]
    refused(tmp_path / "c.jsonl", json.dumps(record).encode(), told)


LINES = {
    "c_deep": (b'{"text": ' + b"[" * 100_000, "line 1: nested too deeply"),
    "c_digits": (b'{"id": ' + b"9" * 5000 + b', "text": ""}', "line 1: cannot be read as JSON .*digits"),
    "c_utf16": ('{"text": "x"}'.encode("utf-16"), "line 1: cannot be read as JSON"),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_that_are_not_sound(tmp_path: Path, name: str) -> None:
    line, told = LINES[name]
    refused(tmp_path / "c.jsonl", line, told)


DUMPS = {
    "c_cirrus_source": ({"_source": [1]}, "line 1: _source is a list"),
    "c_cirrus_opening": ({"title": "", "text": "", "opening_text": 5}, "line 1: opening_text is a int"),
    "c_cirrus_heading": ({"title": "", "text": "", "heading": 5}, "line 1: heading is 5; expected a list"),
    "c_cirrus_headings": ({"title": "", "text": "", "heading": ["x"] * 5_001}, "line 1: heading is "),
    "c_cirrus_id": ({"_id": {"a": 1}, "title": "", "text": ""}, "line 1: _id is a dict; expected text"),
}  # fmt: skip


@pytest.mark.parametrize("name", DUMPS)
def test_odd_dumps(tmp_path: Path, name: str) -> None:
    record, told = DUMPS[name]
    refused(tmp_path / "cirrussearch.json", json.dumps(record).encode(), told)


def refused(path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name}: {told}") as caught:
        for _ in read_pages([path]):
            pass
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000
