"""Orders the hits that go into a context, best first: by their score, by edit distance or by embedding.

Both orders are text scorers, so either can rerank as well. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from strata.retrieval.refine.rerank import TextScorer, rerank_hits
from strata.retrieval.search_config import Order
from strata.retrieval.types import Encode, Hit


def edit_similarity(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """1 - Levenshtein distance / length of the longer text, in 0..1, letter case and white space aside.

    Source: Levenshtein, "Binary codes capable of correcting deletions, insertions, and reversals", 1966; the
    distance is rapidfuzz's.

    Args:
        queries: [Q] texts.
        texts: [Q] texts each.

    Returns:
        [Q] arrays of float64, one similarity a text.
    """
    from rapidfuzz.distance import Levenshtein

    return [
        np.array([Levenshtein.normalized_similarity(_plain(query), _plain(text)) for text in group])
        for query, group in zip(queries, texts, strict=True)
    ]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


class EmbeddingScorer:
    """Cosine similarity of embeddings as a text scorer; a text that several queries share is encoded once.

    Args:
        encode_queries: embeds queries, with the prefix its model wants.
        encode_passages: embeds passages likewise.
    """

    def __init__(self, encode_queries: Encode, encode_passages: Encode) -> None:
        self._encode_queries = encode_queries
        self._encode_passages = encode_passages

    def __call__(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """[Q] arrays of float32 in -1..1, one similarity a text; 0 for an embedding of no length."""
        places: dict[str, int] = {}
        for text in chain.from_iterable(texts):
            places.setdefault(text, len(places))
        if not places:
            return [np.empty(0, dtype=np.float32) for _ in queries]
        queries_QD = normalise(self._encode_queries(list(queries)))
        texts_nD = normalise(self._encode_passages(list(places)))
        return [
            texts_nD[[places[text] for text in group]] @ query_D
            for query_D, group in zip(queries_QD, texts, strict=True)
        ]


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, D] as float32 of length 1; those of length 0 stay so."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def order_hits(
    queries: Sequence[str], hits: Sequence[Sequence[Hit]], scorer: TextScorer, top_k: int
) -> list[list[Hit]]:
    """Sorts the best `top_k` hits of every query by a scorer's opinion; the later ones follow as they were.

    Args:
        queries: [Q] texts.
        hits: [Q] hits, best first.
        scorer: sees the best hits only.
        top_k: how many hits a query are sorted.

    Returns:
        [Q] all hits: those sorted have the scorer's scores, those that follow the scores they had.

    Raises:
        ValueError: the scorer does not return one score a text.
        FloatingPointError: it returns NaN.
    """
    ordered = rerank_hits(queries, hits, scorer, top_k)
    return [[*first, *found[top_k:]] for first, found in zip(ordered, hits, strict=True)]


def pick_order(order: Order, embedding: TextScorer | None) -> TextScorer | None:
    """The scorer behind an order; None where the scores that hits have decide.

    Raises:
        ValueError: an order by embedding without an embedding scorer.
    """
    if order == "embedding" and embedding is None:
        raise ValueError("order 'embedding' needs an embedding scorer; got none")
    return {"score": None, "edit-distance": edit_similarity, "embedding": embedding}[order]
