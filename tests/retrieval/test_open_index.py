"""Opening an index: every method by its name, with scores of the right searcher; devices; encoders."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import InputError, Question
from strata.retrieval.corpus.chunk import searchable_text
from strata.retrieval.index.build import build_index
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.encode import encode_index, write_codes
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.open_index import open_tools, parse_devices
from strata.retrieval.search import search
from strata.retrieval.search_config import SearchConfig

TEXTS = {
    "a": "Cats purr. Cats sleep in the sun.",
    "b": "Dogs bark at cats.",
    "c": "Fish swim. Fish do not purr.",
    "d": "The sun is a star.",
}
QUESTIONS = [
    Question(id="1", prompt="which cats purr", options=()),
    Question(id="2", prompt="sun", options=()),
]


class WordEncoder:
    """Counts words in 64 buckets."""

    name, dim, normalised, description = "words", 64, False, {"model": "words"}

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for text, vector in zip(texts, vectors, strict=True):
            for word in text.lower().replace(".", "").split():
                vector[zlib.crc32(word.encode()) % self.dim] += 1
        return vectors

    encode_passages = encode_queries


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("open-index")
    rows = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in TEXTS.items()]
    (folder / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
    build_index(IndexConfig(corpus=(folder / "corpus.jsonl",), out=folder / "index"))
    encode_index(folder / "index", WordEncoder())
    write_codes(folder / "index", "words", "int8")
    return folder / "index"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file and folder in it, the folder itself included."""
    found = {str(path): path.stat() for path in (folder, *folder.rglob("*"))}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def config(index: Path, **settings) -> SearchConfig:
    return SearchConfig(index=index, questions=Path("q.csv"), out=Path("o.csv"), devices="cpu", **settings)


def test_every_method_is_opened(index: Path) -> None:
    settings = config(index, method=("bm25", "bm25s", "tfidf", "dense"), query="prompt")
    tools = open_tools(settings, encoder=WordEncoder())
    assert [type(searcher).__name__ for searcher in tools.searchers.values()] == [
        "TantivyBm25",
        "Bm25s",
        "QuestionTfidf",
        "DenseIndex",
    ]
    result = search(QUESTIONS, settings, tools)
    assert list(result.rankings) == ["bm25", "bm25s", "tfidf", "dense", "scores"]
    assert [hits[0].chunk.page for hits in result.hits] == ["a", "d"]
    assert tools.num_rows == len(TEXTS)


def test_a_search_only_reads_the_index(index: Path) -> None:
    methods = ("bm25", "bm25s", "tfidf", "dense")
    before = snapshot(index)
    settings = config(index, method=methods, first_pass="int8", pages=2, order="embedding")
    result = search(QUESTIONS, settings, open_tools(settings, encoder=WordEncoder()))
    assert all(result.hits)
    with pytest.raises(
        InputError, match=r"--first-pass: .* no binary codes of encoder 'words'.* --codes binary"
    ):
        open_tools(config(index, method=("dense",), first_pass="binary"), encoder=WordEncoder())
    assert snapshot(index) == before


@pytest.mark.parametrize("first_pass", [None, "int8"])
def test_dense_scores_are_inner_products(index: Path, first_pass) -> None:
    encoder = WordEncoder()
    settings = config(index, method=("dense",), query="prompt", first_pass=first_pass)
    result = search(QUESTIONS, settings, open_tools(settings, encoder=encoder))
    passages = encoder.encode_passages([searchable_text(chunk) for chunk in ChunkStore(index)])
    scores = encoder.encode_queries([question.prompt for question in QUESTIONS]) @ passages.T
    for hits, expected in zip(result.hits, scores, strict=True):
        assert [hit.row for hit in hits] == np.argsort(-expected, kind="stable").tolist()
        assert [hit.score for hit in hits] == sorted(expected.tolist(), reverse=True)


def test_sentences_by_embedding_and_order_by_embedding(index: Path) -> None:
    settings = config(index, pages=2, sentences="embedding", order="embedding", order_top=2, query="prompt")
    result = search(QUESTIONS[:1], settings, open_tools(settings, encoder=WordEncoder()))
    assert result.hits[0][0].chunk.text == "Cats purr."
    assert result.hits[0][0].score == pytest.approx(2 / np.sqrt(3 * 2))


def test_an_index_without_vectors_is_refused(index: Path) -> None:
    with pytest.raises(InputError, match=r"--encoder: other; expected one of.* words"):
        open_tools(config(index, method=("dense",), encoder="other"))


@pytest.mark.parametrize(
    ("text", "devices"),
    [("cpu", ("cpu",)), ("cuda:0, cuda:1", ("cuda:0", "cuda:1")), ("cpu,cpu", ("cpu", "cpu"))],
)
def test_devices(text: str, devices: tuple[str, ...]) -> None:
    assert parse_devices(text) == devices


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cpu,,cpu"])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--devices"):
        parse_devices(text)


def test_auto_is_never_empty() -> None:
    assert parse_devices("auto")
