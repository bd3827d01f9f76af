"""The best k rows of every query so far, exactly: float64 scores, ties by lower row. Knows no vectors.

Legend: Q queries, k places, n candidates.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from strata.retrieval.types import NO_ROW, Ranking


class RunningTopK:
    """Collects candidates and keeps the best `top_k` of every query.

    Candidates wait until there are as many as places, and are sorted in together. A row may be added once
    only. Memory: 16 bytes a place and 24 bytes a waiting candidate.

    Attributes:
        rows: [Q, k] int64, best first; -1 where nothing is yet.
        scores: [Q, k] float64, descending; minus infinity where nothing is yet.
    """

    def __init__(self, num_queries: int, top_k: int) -> None:
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; expected 1 or more")
        self.rows = np.full((num_queries, top_k), NO_ROW, dtype=np.int64)
        self.scores = np.full((num_queries, top_k), -np.inf, dtype=np.float64)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._num_waiting = 0

    def add(self, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> None:
        """Takes n candidates: indexes of queries [n], rows [n] and scores [n] float64, in any order."""
        self._waiting.append((queries, rows, scores))
        self._num_waiting += len(queries)
        if self._num_waiting >= self.rows.size:
            self.merge()

    def merge(self) -> None:
        """Sorts in whatever waits."""
        if not self._num_waiting:
            return
        num_queries, top_k = self.rows.shape
        kept = (np.repeat(np.arange(num_queries), top_k), self.rows.ravel(), self.scores.ravel())
        queries, rows, scores = (np.concatenate(parts) for parts in zip(kept, *self._waiting, strict=True))
        order = np.lexsort((rows, -scores, queries))
        first = np.searchsorted(queries[order], np.arange(num_queries))
        best = order[first[:, None] + np.arange(top_k)]
        self.rows, self.scores = rows[best], scores[best]
        self._waiting.clear()
        self._num_waiting = 0

    def kth_scores(self) -> np.ndarray:
        """[Q] float64, no more than what a candidate has to beat; minus infinity while places are free."""
        if np.isneginf(self.scores[:, -1]).any():
            self.merge()
        return self.scores[:, -1]

    def ranking(self) -> Ranking:
        """What was found, scores rounded to float32; the order is that of the float64 scores."""
        self.merge()
        return Ranking(rows=self.rows, scores=self.scores.astype(np.float32))


def merge_top_k(parts: Iterable[tuple[np.ndarray, np.ndarray]], num_queries: int, top_k: int) -> RunningTopK:
    """Joins the (rows, float64 scores), each [Q, k], of searches over different rows."""
    best = RunningTopK(num_queries, top_k)
    for rows, scores in parts:
        query, place = np.nonzero(rows != NO_ROW)
        best.add(query, rows[query, place], scores[query, place])
    best.merge()
    return best
