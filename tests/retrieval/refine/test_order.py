"""Orders by edit distance and embedding, each against a slow and obvious computation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from strata.retrieval.refine.order import EmbeddingScorer, edit_similarity, pick_order


def levenshtein(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (one != other))
    return row[-1]


def test_edit_similarity_matches_the_textbook() -> None:
    query, texts = "kitten on the mat", ["sitting on a mat", "kitten on the mat", "", "zzz"]
    expected = [1 - levenshtein(query, text) / max(len(query), len(text)) for text in texts]
    assert edit_similarity([query], [texts])[0] == pytest.approx(expected)


def test_edit_similarity_ignores_case_and_white_space() -> None:
    assert edit_similarity(["Strasse  A"], [["STRASSE\na"]])[0].tolist() == [1.0]


def test_embedding_scorer_is_the_cosine_and_encodes_shared_texts_once() -> None:
    asked: list[str] = []

    def encode_passages(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float16)

    def encode_queries(texts: Sequence[str]) -> np.ndarray:
        return np.array([[1.0, len(text)] for text in texts])

    scores = EmbeddingScorer(encode_queries, encode_passages)(["xx", "y"], [["aab", "a"], ["a", "", "b"]])
    assert asked == ["aab", "a", "", "b"]
    cosine = (1 * 3 + 2 * 2) / (np.hypot(1, 2) * np.hypot(3, 2))
    assert scores[0] == pytest.approx([cosine, 3 / (np.hypot(1, 2) * np.hypot(1, 1))], abs=1e-6)
    assert scores[1] == pytest.approx([1.0, 0.0, 1 / np.hypot(1, 1)], abs=1e-6)


def test_embedding_scorer_of_nothing_asks_nothing() -> None:
    def never(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("was called")

    assert [len(values) for values in EmbeddingScorer(never, never)(["q"], [[]])] == [0]


def test_orders_by_name() -> None:
    scorer = EmbeddingScorer(np.zeros, np.zeros)  # type: ignore[arg-type]
    assert pick_order("score", None) is None
    assert pick_order("edit-distance", None) is edit_similarity
    assert pick_order("embedding", scorer) is scorer
    with pytest.raises(ValueError, match="needs an embedding scorer"):
        pick_order("embedding", None)
