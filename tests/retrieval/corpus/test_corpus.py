"""Readers: every format gives the same pages, and what is broken is named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strata.engine.types import InputError
from strata.retrieval.corpus import pages as corpus
from strata.retrieval.corpus.pages import list_corpus_files, read_pages
from strata.retrieval.corpus.records import FieldNames
from strata.retrieval.types import Page

RECORDS = [
    {"_id": "a", "title": "Alpha", "text": "First text."},
    {"_id": "b", "title": "", "text": "\u0422\u0435\u043a\u0441\u0442."},
    {"_id": "c", "title": "Empty", "text": ""},
]
PAGES = [Page(id=r["_id"], title=r["title"], text=r["text"]) for r in RECORDS]


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.json.bz2", "c.ndjson.xz", "c.JSONL.GZ"])
def test_jsonl_compressed_or_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_jsonl(path.with_suffix(path.suffix.lower()), RECORDS).rename(path)
    assert list(read_pages([path])) == PAGES


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist([record | {"unused": 1} for record in RECORDS]), path)
    assert list(read_pages([path])) == PAGES


def test_beir_folder_reads_its_corpus_only(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", RECORDS)
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "a query"}])
    assert list(read_pages([tmp_path])) == PAGES
    assert list(read_pages([tmp_path], format="beir")) == PAGES


def test_a_folder_is_read_by_name_and_paths_as_given(tmp_path: Path) -> None:
    for name, record in zip(("z/1.jsonl", "a/2.jsonl"), RECORDS[:2], strict=True):
        write_jsonl(tmp_path / name, [record])
    assert [page.id for page in read_pages([tmp_path])] == ["b", "a"]
    assert [page.id for page in read_pages([tmp_path / "z", tmp_path / "a"])] == ["a", "b"]


def test_text_file_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_bytes(b"\xef\xbb\xbfOne.\nTwo.\n")
    (tmp_path / "none.txt").write_text("")
    pages = list(read_pages([tmp_path]))
    assert pages[1] == Page(id="note.txt", title="note", text="One.\nTwo.\n")
    assert pages[0].text == ""


def test_long_text_is_cut_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_TEXT_PAGE_CHARS", 10)
    (tmp_path / "long.txt").write_text("12345\n" * 5)
    pages = list(read_pages([tmp_path / "long.txt"]))
    assert [(page.id, len(page.text)) for page in pages] == [
        ("long.txt", 12),
        ("long.txt~1", 12),
        ("long.txt~2", 6),
    ]


def test_sections_ids_and_odd_values(tmp_path: Path) -> None:
    records = [
        {"sections": [{"heading": "H", "text": "one"}, ["I", "two"]]},
        {"id": 7, "title": None, "contents": None},
        {"id": "s", "text": "half \ud800 pair"},
    ]
    first, second, third = read_pages([write_jsonl(tmp_path / "c.jsonl", records)])
    assert first == Page(id="c.jsonl:1", title="", text="one\ntwo", sections=(("H", "one"), ("I", "two")))
    assert second == Page(id="7", title="", text="")
    assert third.text == "half ? pair"


def test_named_fields(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{"key": "k", "name": "n", "abstract": "x", "text": "y"}])
    names = FieldNames(id="key", title="name", text="abstract")
    assert list(read_pages([path], names=names)) == [Page(id="k", title="n", text="x")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json}", "line 2: cannot be read as JSON"),
        ("[1]", "line 2: a list; expected a JSON object"),
        ('{"foo": "x"}', "line 2: no text; .*it has 'foo'"),
        ('{"text": 5}', "line 2: text is a int; expected text"),
        ('{"text": "x", "sections": "y"}', "line 2: sections is a str"),
        ('{"text": "x", "sections": [1]}', "line 2: a section is 1"),
        ("\udcff", "line 2: cannot be read as JSON"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=f"c.jsonl: {message}"):
        list(read_pages([path]))


def test_a_missing_named_field_tells_the_flag(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", RECORDS)
    with pytest.raises(InputError, match=r"no field 'body' \(--text-field\)"):
        list(read_pages([path], names=FieldNames(text="body")))


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = write_jsonl(tmp_path / "c.jsonl.gz", RECORDS * 50).read_bytes()
    (tmp_path / "c.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"c.jsonl.gz: cannot be decompressed"):
        list(read_pages([tmp_path / "c.jsonl.gz"]))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"c.parquet: cannot be read as Parquet"):
        list(read_pages([tmp_path / "c.parquet"]))
    (tmp_path / "c.txt").write_bytes(b"fine\n\xff\n")
    with pytest.raises(InputError, match=r"c.txt: line 2: not UTF-8"):
        list(read_pages([tmp_path / "c.txt"]))


def test_paths_that_hold_no_corpus_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "absent", "absent not found"),
        (tmp_path / "x.bin", "x.bin: cannot tell its format"),
        (tmp_path / "empty", "empty: no corpus file"),
    ):
        with pytest.raises(InputError, match=message):
            list_corpus_files([path])
    with pytest.raises(InputError, match="expected a BEIR folder"):
        list_corpus_files([tmp_path / "empty"], "beir")
