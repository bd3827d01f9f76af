"""TF-IDF with the questions' vocabulary: equal to scikit-learn in one piece, whatever the slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.searchers import tfidf
from strata.retrieval.searchers.tfidf import QuestionTfidf, TfidfSettings

from ..small_index import make_index, random_texts

TEXTS = random_texts(90)
QUERIES = [*random_texts(12, seed=1, longest=6), "", "unheard of", "\u4f60\u597d", "word2 word2 word2 word5"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ChunkStore:
    return make_index(tmp_path_factory.mktemp("tfidf"), TEXTS, chunks_per_shard=20)


def reference_scores(num_idf_rows: int, *, sublinear: bool = True) -> np.ndarray:
    """[Q, C] cosines by scikit-learn's pipeline over the whole corpus at once."""
    settings = {"ngram_range": (1, 2), "stop_words": "english", "token_pattern": r"(?u)\b\w+\b"}
    vocabulary = TfidfVectorizer(**settings).fit(QUERIES).vocabulary_
    vectorizer = TfidfVectorizer(**settings, vocabulary=vocabulary, sublinear_tf=sublinear)
    vectorizer.fit(TEXTS[:num_idf_rows])
    return (vectorizer.transform(QUERIES) @ vectorizer.transform(TEXTS).T).toarray()


@pytest.mark.parametrize("rows_per_slice", [1, 7, 90, 1000])
@pytest.mark.parametrize("top_k", [1, 10, 200])
def test_equals_scikit_learn(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch, rows_per_slice: int, top_k: int
) -> None:
    monkeypatch.setattr(tfidf, "TEXTS_PER_CALL", 4)
    done: list[int] = []
    searcher = QuestionTfidf(
        store, settings=TfidfSettings(num_idf_rows=33), rows_per_slice=rows_per_slice, report=done.append
    )
    ranking = searcher.search(QUERIES, top_k)
    for rows, scores, expected in zip(ranking.rows, ranking.scores, reference_scores(33), strict=True):
        order = np.lexsort((np.arange(len(expected)), -np.round(expected, 6)))
        order = order[expected[order] > 0][:top_k]
        assert rows[: len(order)].tolist() == order.tolist()
        np.testing.assert_allclose(scores[: len(order)], expected[order], rtol=1e-5)
        assert (rows[len(order) :] == -1).all()
        assert np.isneginf(scores[len(order) :]).all()
    assert done[-1] == 90
    assert max(np.diff([0, *done])) <= rows_per_slice


def test_sublinear_is_a_choice(store: ChunkStore) -> None:
    ranking = QuestionTfidf(store, settings=TfidfSettings(sublinear=False)).search(QUERIES, 5)
    expected = reference_scores(90, sublinear=False)
    np.testing.assert_allclose(ranking.scores[0], np.sort(expected[0])[::-1][:5], rtol=1e-5)
    assert not np.allclose(ranking.scores[0], np.sort(reference_scores(90)[0])[::-1][:5], rtol=1e-5)


def test_best_come_first(store: ChunkStore) -> None:
    scores = QuestionTfidf(store, rows_per_slice=13).search(QUERIES, 20).scores
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert (scores[:, 0] > scores[:, -1]).any()


def test_queries_of_no_words(store: ChunkStore) -> None:
    ranking = QuestionTfidf(store).search(["", "?"], 3)
    assert ranking.rows.tolist() == [[-1] * 3] * 2
    assert QuestionTfidf(store).search([], 3).rows.shape == (0, 3)


def test_repeating_the_prompt_weighs_its_words(tmp_path: Path) -> None:
    store = make_index(tmp_path, ["alpha beta", "gamma delta"])
    ranking = QuestionTfidf(store).search(["alpha alpha alpha gamma"], 2)
    assert ranking.rows.tolist() == [[0, 1]]
    assert ranking.scores[0, 0] > 1.5 * ranking.scores[0, 1]


def test_slices_of_nothing_are_refused(store: ChunkStore) -> None:
    with pytest.raises(ValueError, match="rows_per_slice is 0"):
        QuestionTfidf(store, rows_per_slice=0)
    with pytest.raises(ValueError, match="num_idf_rows is 0"):
        TfidfSettings(num_idf_rows=0)
