"""Builds: equal when repeated, equal when interrupted anywhere, refused where something else lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strata.engine.files import write_atomically
from strata.engine.types import InputError
from strata.retrieval.index import build
from strata.retrieval.index.build import build_index
from strata.retrieval.index.chunk_store import ChunkStore, ChunkWriter
from strata.retrieval.index.manifest import read_manifest
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.searchers.bm25 import TantivyBm25

from ..small_index import make_index, random_texts, write_corpus

TEXTS = [". ".join(text.split()).title() + "." for text in random_texts(16, longest=20)]
SETTINGS = {"chunk_chars": 20, "chunks_per_shard": 7}


def chunk_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "chunks").iterdir())}


def test_two_builds_are_equal(tmp_path: Path) -> None:
    first, second = (make_index(tmp_path / name, TEXTS, **SETTINGS) for name in "ab")
    assert chunk_files(first.folder) == chunk_files(second.folder)
    assert read_manifest(first.folder).settings == read_manifest(second.folder).settings
    one, two = (TantivyBm25(store.folder).search(TEXTS[:9], 50) for store in (first, second))
    assert one.rows.tolist() == two.rows.tolist()
    assert one.scores.tolist() == two.scores.tolist()


@pytest.mark.parametrize("stop_after", [1, 7, 8, 40])
@pytest.mark.parametrize("near_duplicates", [None, 0.9])
def test_an_interrupted_build_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int, near_duplicates: float | None
) -> None:
    settings = SETTINGS | {"near_duplicates": near_duplicates}
    whole = make_index(tmp_path / "whole", [*TEXTS, "", " "], **settings)
    num_added = 0
    add = ChunkWriter.add

    def add_until(writer: ChunkWriter, chunk: object) -> str | None:
        nonlocal num_added
        if num_added == stop_after:
            raise KeyboardInterrupt
        num_added += 1
        return add(writer, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkWriter, "add", add_until)
        with pytest.raises(KeyboardInterrupt):
            make_index(tmp_path / "cut", [*TEXTS, "", " "], **settings)
    with pytest.raises(InputError, match="not found; expected a folder that `strata index` finished"):
        ChunkStore(tmp_path / "cut" / "index")
    config = IndexConfig(
        corpus=(tmp_path / "cut" / "corpus.jsonl",), out=tmp_path / "cut" / "index", **settings
    )
    report = build_index(config)
    assert report.num_resumed_chunks == stop_after // 7 * 7
    assert chunk_files(config.out) == chunk_files(whole.folder)
    expected = read_manifest(whole.folder)
    assert report.manifest.num_pages == expected.num_pages == 18
    assert report.manifest.parts["chunks"] == expected.parts["chunks"]
    assert report.num_empty_pages == 2
    assert report.num_dropped_pages == (4 if near_duplicates else 0)
    assert {path.name for path in config.out.iterdir()} == {"manifest.json", "chunks", "tantivy"}


def test_an_interrupted_tantivy_goes_on(tmp_path: Path) -> None:
    whole = make_index(tmp_path / "whole", TEXTS, **SETTINGS)
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    config = IndexConfig(corpus=(corpus,), out=tmp_path / "index", **SETTINGS)
    seen: list[int] = []

    def stop(stage: str, num_done: int) -> None:
        if stage == "chunks":
            seen.append(num_done)
            if num_done >= 14:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(config, stop)
    assert seen == [7, 14]
    with pytest.raises(InputError, match="no part 'tantivy'"):
        TantivyBm25(config.out)
    build_index(config)
    one, two = (TantivyBm25(folder).search(TEXTS[:9], 50) for folder in (whole.folder, config.out))
    assert one.rows.tolist() == two.rows.tolist()
    assert one.scores.tolist() == two.scores.tolist()


def leave_half_a_file(path: Path) -> Path:
    """What is left of a file whose writing was killed."""
    names = []

    def write(temporary: Path) -> None:
        names.append(temporary)
        temporary.write_text("whole")

    write_atomically(path, write)
    path.unlink()
    names[0].write_text("half")
    return names[0]


def test_what_a_killed_build_left_goes(tmp_path: Path) -> None:
    config = IndexConfig(
        corpus=(write_corpus(tmp_path / "corpus.jsonl", TEXTS),), out=tmp_path / "index", **SETTINGS
    )
    halves = [leave_half_a_file(config.out / name) for name in ("building.json", "chunks/00000.parquet")]
    build_index(config)
    assert {path.name for path in config.out.iterdir()} == {"manifest.json", "chunks", "tantivy"}
    assert not any(path.exists() for path in halves)
    half = leave_half_a_file(config.out / "other.json")
    build_index(config)
    assert not half.exists()


def test_a_finished_index_is_left_alone(tmp_path: Path) -> None:
    store = make_index(tmp_path, TEXTS, **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    config = IndexConfig(corpus=(tmp_path / "corpus.jsonl",), out=store.folder, **SETTINGS)
    assert build_index(config).num_resumed_chunks == len(store)
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before


def test_other_settings_another_corpus_and_other_files_are_refused(tmp_path: Path) -> None:
    store = make_index(tmp_path, TEXTS, **SETTINGS)
    corpus = tmp_path / "corpus.jsonl"
    with pytest.raises(InputError, match="made with chunk_chars = 20, now it is 21"):
        build_index(IndexConfig(corpus=(corpus,), out=store.folder, **SETTINGS | {"chunk_chars": 21}))
    write_corpus(corpus, [*TEXTS, "more"])
    with pytest.raises(InputError, match="another corpus"):
        build_index(IndexConfig(corpus=(corpus,), out=store.folder, **SETTINGS))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"mine holds other files \(thesis.txt\)"):
        build_index(IndexConfig(corpus=(corpus,), out=tmp_path / "mine"))


def test_a_shard_that_changed_under_an_interrupted_build_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    config = IndexConfig(corpus=(corpus,), out=tmp_path / "index", **SETTINGS)

    def stop(stage: str, num_done: int) -> None:
        if num_done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(config, stop)
    last = json.loads((config.out / "building.json").read_text())["files"].popitem()[0]
    (config.out / last).write_bytes((config.out / last).read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=f"{last}: damaged"):
        build_index(config)


def test_near_duplicates_and_limit(tmp_path: Path) -> None:
    store = make_index(tmp_path / "a", TEXTS, near_duplicates=1.0)
    assert len(store) == len(set(TEXTS)) == 12
    assert len(make_index(tmp_path / "b", TEXTS, limit=5)) == 5


def test_a_megabyte_page_and_pages_of_no_text(tmp_path: Path) -> None:
    store = make_index(tmp_path, ["", "One two. " * 120_000, " \n"], chunk_chars=512)
    chunks = list(store)
    assert {chunk.page for chunk in chunks} == {"1"}
    assert max(len(chunk.text) for chunk in chunks) <= 512
    assert TantivyBm25(store.folder).search(["two"], 3).rows[0].min() >= 0


def test_a_corpus_of_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 page\(s\), none with text"):
        make_index(tmp_path, ["", " "])


def test_chunks_of_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    store = make_index(tmp_path, ["A b c. D e. F g h i j."], chunk_tokens=5, tokenizer=tmp_path)
    assert [chunk.text for chunk in store] == ["A b c. D e.", "F g h i j."]
    with pytest.raises(InputError, match=r"tokenizer.json not found"):
        build.token_measure(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json: model: field required"):
        build.token_measure(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--corpus"),
        ({"corpus": (Path("x"),), "chunk_chars": 0}, "--chunk-chars: 0"),
        ({"corpus": (Path("x"),), "chunk_tokens": 5}, "go together"),
        ({"corpus": (Path("x"),), "near_duplicates": 1.5}, "--near-duplicates: 1.5"),
        ({"corpus": (Path("absent"),)}, "absent not found"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_index(IndexConfig(**settings))
