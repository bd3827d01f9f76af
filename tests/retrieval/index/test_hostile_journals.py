"""Journals changed by hand: noticed when the build goes on, in one line with the key.

A count that is wrong would leave pages out without a word, so each is held against the shards and the corpus.
The check of a message is the key that the test changed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from strata.engine.types import InputError
from strata.retrieval.index.build import build_index, read_config_pages
from strata.retrieval.index.journal import open_journal
from strata.retrieval.index.resume import WrittenPages, count_pages
from strata.retrieval.index_config import IndexConfig

from ..small_index import random_texts, write_corpus
from .test_hostile_indexes import ABSENT, DEEP, set_key

SHARD = "chunks/00001.parquet"
TEXTS = ["", *random_texts(39), "", "word1. " * 9]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a build that was interrupted after two shards of five chunks."""
    folder = tmp_path_factory.mktemp("journals")
    write_corpus(folder / "corpus.jsonl", TEXTS)

    def stop(stage: str, num_done: int) -> None:
        if num_done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(config_of(folder), stop)
    return folder


def config_of(folder: Path) -> IndexConfig:
    return IndexConfig(corpus=(folder / "corpus.jsonl",), out=folder / "index", chunks_per_shard=5)


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    """A copy of it; the journal is told of the copy's corpus, which is the same."""
    shutil.copytree(begun, tmp_path / "copy")
    path = tmp_path / "copy" / "index" / "building.json"
    content = json.loads(path.read_text())
    corpus = tmp_path / "copy" / "corpus.jsonl"
    content["corpus"] = [
        {"path": str(corpus), "bytes": corpus.stat().st_size, "mtime_ns": corpus.stat().st_mtime_ns}
    ]
    path.write_text(json.dumps(content))
    return tmp_path / "copy"


WHOLE = {"is_whole": True, "num_chunks_of_next": 0, "num_pages": 11}
JOURNALS: dict[str, tuple[dict[str, Any], str]] = {
    "j_entry_nobytes": ({f"files|{SHARD}|bytes": ABSENT}, f"files.{SHARD}.bytes: field required"),
    "j_files_list": ({"files": ["x"]}, "files: input should be"),
    "j_files_other": ({f"files|{SHARD}": ABSENT}, "num_chunks is 10, and by the shards it is 5"),
    "j_files_outside": ({"files|../x": {}}, r"files.\.\./x.*inside the index folder"),
    "j_pages_neg": ({"num_pages": -1}, "num_pages: input should be greater"),
    "j_pages_str": ({"num_pages": "10"}, "num_pages: input should be a valid integer, found '10'"),
    "j_pages_big": ({"num_pages": 500}, "num_pages is 500, and by the shards it is 10"),
    "j_pages_and_empty": ({"num_pages": 12, "num_empty": 3}, "num_pages is 12, and the page after .* '12'"),
    "j_pages_few": ({"num_pages": 9, "num_empty": 0}, "num_pages is 9, and the page after .* '9', not '10'"),
    "j_pages_beyond": ({"num_pages": 99, "num_empty": 90}, "num_pages is 99, and the corpus has 42"),
    "j_chunks": ({"num_chunks": 11}, "num_chunks is 11, and by the shards it is 10"),
    "j_of_next": ({"num_chunks_of_next": 2}, "num_chunks_of_next is 2, and by the shards it is 1"),
    "j_whole": ({"is_whole": True}, "is_whole is true, and 1 chunks are of a page begun"),
    "j_whole_counts": (WHOLE, "num_pages is 11, and the page after them is '11', not None"),
    "j_whole_str": ({"is_whole": "yes"}, "is_whole: input should be a valid boolean"),
    "j_deep": ({"more": DEEP}, "nested too deeply"),
    "j_settings": ({"settings|language": 5}, "settings.language: input should be"),
    "j_version": ({"format_version": [1]}, r"format_version is \[1\]; expected 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", JOURNALS)
def test_journals(folder: Path, name: str) -> None:
    changes, told = JOURNALS[name]
    path = folder / "index" / "building.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        set_key(content, key, value)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"building.json: {told}") as caught:
        build_index(config_of(folder))
    assert "\n" not in str(caught.value)


def test_an_unchanged_journal_goes_on(folder: Path) -> None:
    assert build_index(config_of(folder)).manifest.num_pages == len(TEXTS)


@pytest.mark.parametrize("num_shards", [0, 1, 2])
def test_pages_of_shards_are_counted_as_the_corpus_has_them(folder: Path, num_shards: int) -> None:
    """The check: pages of the corpus, each of which is one chunk here or, without text, none."""
    config = config_of(folder)
    files = [folder / "index" / file for file in sorted(open_journal_files(config))[:num_shards]]
    with_text = [page.id for page in read_config_pages(config) if page.text][: 5 * num_shards]
    expected = WrittenPages(
        num_pages=len(with_text),
        last_page=with_text[-1] if with_text else None,
        num_chunks_of_last=min(1, len(with_text)),
    )
    assert count_pages(files) == expected


def test_a_page_over_several_shards_is_one(tmp_path: Path) -> None:
    texts = ["Aaaa. " * 3, "Bbbb. " * 8, "Cccc."]
    corpus = write_corpus(tmp_path / "corpus.jsonl", texts)
    config = IndexConfig(corpus=(corpus,), out=tmp_path / "index", chunks_per_shard=4, chunk_chars=5)
    build_index(config)
    shards = sorted((config.out / "chunks").iterdir())
    assert [count_pages(shards[:number]) for number in (1, 2, 3)] == [
        WrittenPages(num_pages=2, last_page="1", num_chunks_of_last=1),
        WrittenPages(num_pages=2, last_page="1", num_chunks_of_last=5),
        WrittenPages(num_pages=3, last_page="2", num_chunks_of_last=1),
    ]


def open_journal_files(config: IndexConfig) -> list[str]:
    content = json.loads((config.out / "building.json").read_text())
    journal = open_journal(config.out, content["settings"], content["corpus"])
    return list(journal.progress.files)
