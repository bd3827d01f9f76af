"""BM25: both ways equal the formula computed one document after the other in float64, ties by row."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import InputError
from strata.retrieval.corpus.analyzer import make_analyzer
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.searchers import bm25
from strata.retrieval.searchers.bm25 import Bm25Parameters, Bm25s, TantivyBm25
from strata.retrieval.types import Ranking

from ..small_index import make_index, random_texts

K1, B = 1.2, 0.75
ODD_QUERIES = ["", "  ?!", "unheardof", "\u4f60\u597d", 'AND OR (word1 "', "word1:word2 ^3 ~ *"]


def stored_length(length: int) -> int:
    """The length tantivy keeps in a byte: exact up to 40, then four significant bits of what exceeds 24.

    Source: Lucene's SmallFloat.intToByte4, whose decoding tantivy's table of field norms follows.
    """
    excess = max(length - 24, 0)
    shift = max(excess.bit_length() - 4, 0)
    return length - excess + (excess >> shift << shift)


def bm25_scores(texts: list[str], query: str, *, rounded: bool) -> np.ndarray:
    """The textbook formula over white-space tokens; [texts] float64."""
    documents = [text.split() for text in texts]
    average = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(documents))
    for token in query.split():
        num_holding = sum(token in document for document in documents)
        idf = math.log(1 + (len(documents) - num_holding + 0.5) / (num_holding + 0.5))
        for place, document in enumerate(documents):
            tf = Counter(document)[token]
            length = stored_length(len(document)) if rounded else len(document)
            scores[place] += idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * length / average))
    return scores


def assert_ranks_like(ranking: Ranking, scores_QC: list[np.ndarray], top_k: int) -> None:
    """The rows are the reference's, ties by row; the scores agree to float32."""
    for rows, scores, expected in zip(ranking.rows, ranking.scores, scores_QC, strict=True):
        # Scores that float32 arithmetic cannot tell apart are one score.
        distinct = np.round(expected, 5)
        order = np.lexsort((np.arange(len(expected)), -distinct))
        order = order[expected[order] > 0][:top_k]
        taken = rows >= 0
        assert rows[taken].tolist() == order.tolist()
        np.testing.assert_allclose(scores[taken], expected[order], rtol=2e-6)
        assert np.isneginf(scores[~taken]).all()
        assert taken[: taken.sum()].all()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return random_texts(120, longest=40)


@pytest.fixture(scope="module")
def queries() -> list[str]:
    return [*random_texts(30, seed=1, longest=12), "word3 word3 word3 word7", *ODD_QUERIES[:4]]


@pytest.fixture(scope="module")
def store(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> ChunkStore:
    return make_index(tmp_path_factory.mktemp("bm25"), texts, language="none", chunks_per_shard=25)


@pytest.fixture(scope="module")
def bm25s(store: ChunkStore) -> Bm25s:
    return Bm25s(store, "none", num_threads=1)


@pytest.mark.slow
def test_threads_of_bm25s_find_the_same(store: ChunkStore, bm25s: Bm25s, queries: list[str]) -> None:
    one, two = (searcher.search(queries, 10) for searcher in (bm25s, Bm25s(store, "none", num_threads=2)))
    assert one.rows.tolist() == two.rows.tolist()
    assert one.scores.tolist() == two.scores.tolist()


@pytest.mark.parametrize("top_k", [1, 10, 120, 500])
def test_tantivy_equals_the_formula(
    store: ChunkStore, texts: list[str], queries: list[str], top_k: int
) -> None:
    ranking = TantivyBm25(store.folder).search(queries, top_k)
    assert ranking.rows.shape == ranking.scores.shape == (len(queries), top_k)
    assert (ranking.rows.dtype, ranking.scores.dtype) == (np.int64, np.float32)
    assert_ranks_like(ranking, [bm25_scores(texts, query, rounded=True) for query in queries], top_k)


def test_lengths_that_tantivy_rounds(tmp_path: Path) -> None:
    texts = random_texts(60, longest=400)
    store = make_index(tmp_path, texts, language="none")
    queries = random_texts(20, seed=2, longest=6)
    ranking = TantivyBm25(store.folder).search(queries, 10)
    assert_ranks_like(ranking, [bm25_scores(texts, query, rounded=True) for query in queries], 10)


@pytest.mark.parametrize("top_k", [1, 10, 120, 500])
def test_bm25s_equals_the_formula(bm25s: Bm25s, texts: list[str], queries: list[str], top_k: int) -> None:
    ranking = bm25s.search(queries, top_k)
    assert ranking.rows.shape == (len(queries), top_k)
    assert_ranks_like(ranking, [bm25_scores(texts, query, rounded=False) for query in queries], top_k)


def test_bm25s_with_other_parameters(
    store: ChunkStore, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "K1", 0.9)
    monkeypatch.setitem(globals(), "B", 0.4)
    searcher = Bm25s(store, "none", parameters=Bm25Parameters(k1=0.9, b=0.4), backend="numpy")
    ranking = searcher.search(["word1 word2"], 10)
    assert_ranks_like(ranking, [bm25_scores(texts, "word1 word2", rounded=False)], 10)


def test_ties_over_the_last_place_go_by_row(tmp_path: Path) -> None:
    store = make_index(tmp_path, ["same words"] * 50 + ["same other"], language="none", chunks_per_shard=8)
    for searcher in (TantivyBm25(store.folder), Bm25s(store, "none", backend="numpy")):
        assert searcher.search(["words"], 7).rows.tolist() == [list(range(7))]
        assert searcher.search(["same", "other"], 3).rows.tolist() == [[0, 1, 2], [50, -1, -1]]


@pytest.mark.parametrize("query", ODD_QUERIES)
def test_queries_are_text_not_syntax(store: ChunkStore, bm25s: Bm25s, query: str) -> None:
    words = " ".join(make_analyzer("none").analyze(query))
    for searcher in (TantivyBm25(store.folder), bm25s):
        odd, plain = searcher.search([query], 5), searcher.search([words], 5)
        assert odd.rows.tolist() == plain.rows.tolist()
        assert (odd.rows >= 0).all() == ("word1" in query)


def test_no_queries(store: ChunkStore, bm25s: Bm25s) -> None:
    assert TantivyBm25(store.folder).search([], 4).rows.shape == (0, 4)
    assert bm25s.search([], 4).rows.shape == (0, 4)


def test_stems_stop_words_titles_and_other_scripts(tmp_path: Path) -> None:
    texts = [
        "The foxes were running.",
        "\u4f60\u597d\u4e16\u754c",
        "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
        "The end of the day",
    ]
    store = make_index(tmp_path, texts)
    queries = ["fox run", "\u4e16\u754c", "\u043c\u0438\u0440", "the of"]
    for searcher in (TantivyBm25(store.folder), Bm25s(store, backend="numpy")):
        assert searcher.search(queries, 1).rows.tolist() == [[0], [1], [2], [-1]]


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    store = make_index(tmp_path, ["one", "two"])
    path = next((store.folder / "tantivy").glob("*.idx"))
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name}: damaged"):
        TantivyBm25(store.folder)


def test_a_folder_that_cannot_be_written_is_searched_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_index(tmp_path, ["one", "two"])
    for lock in (store.folder / "tantivy").glob(".tantivy-*"):
        lock.unlink()
    before = sorted((store.folder / "tantivy").iterdir())
    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(bm25.os, "access", lambda path, mode: False)
    assert TantivyBm25(store.folder).search(["two"], 1).rows.tolist() == [[1]]
    assert sorted((store.folder / "tantivy").iterdir()) == before
