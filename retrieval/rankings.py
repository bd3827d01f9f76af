"""Makes rankings of candidates and takes them apart again. Knows nothing of where scores come from.

Legend: Q queries, k places of a ranking, n candidates of one query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.retrieval.types import NO_ROW, Ranking

Candidates = tuple[np.ndarray, np.ndarray]
"""Rows [n] int64 and scores [n] float64 of one query's candidates, each row once, in any order."""


def rank_candidates(candidates: Sequence[Candidates], top_k: int) -> Ranking:
    """Ranks every query's candidates, best first; of equal float32 scores the lower row comes first.

    Args:
        candidates: [Q] rows and scores; a query may have none.
        top_k: places of the ranking.

    Returns:
        A ranking of [Q, top_k]; places that nothing takes have row -1 and score minus infinity.

    Raises:
        ValueError: `top_k` is below 1.
        FloatingPointError: a score is NaN.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected 1 or more")
    ranking = empty_ranking(len(candidates), top_k)
    for query, (rows, scores) in enumerate(candidates):
        # Rounded first: two scores that float32 cannot tell apart are a tie to whoever reads the ranking.
        rounded = np.asarray(scores).astype(np.float32)
        if np.isnan(rounded).any():
            raise FloatingPointError(f"a score of query {query} is NaN; expected numbers")
        best, values = best_places(rounded, np.asarray(rows), top_k)
        ranking.rows[query, : len(best)], ranking.scores[query, : len(best)] = best, values
    return ranking


def empty_ranking(num_queries: int, top_k: int) -> Ranking:
    """A ranking of free places only: [Q, k] rows -1, scores minus infinity."""
    return Ranking(
        rows=np.full((num_queries, top_k), NO_ROW, dtype=np.int64),
        scores=np.full((num_queries, top_k), -np.inf, dtype=np.float32),
    )


def best_places(scores: np.ndarray, rows: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of one query's candidates, best first; of equal scores, the lower row first.

    Args:
        scores: [n] float32, none of them NaN.
        rows: [n] int64, all different, in any order.
        top_k: how many to keep.

    Returns:
        Rows [m] int64 and scores [m] float32, m being the smaller of n and `top_k`.
    """
    if 0 < 4 * top_k < len(scores):
        # Whatever scores less than the k-th best goes before anything is sorted; ties with it stay.
        least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        scores, rows = scores[scores >= least], rows[scores >= least]
    order = np.lexsort((rows, -scores))[:top_k]
    return rows[order].astype(np.int64), scores[order].astype(np.float32)


def read_candidates(ranking: Ranking, query: int) -> Candidates:
    """The taken places of one query: rows [n] and scores [n] float64, best first."""
    rows = ranking.rows[query]
    is_taken = rows != NO_ROW
    return rows[is_taken], ranking.scores[query][is_taken].astype(np.float64)


def sum_by_row(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of one query from several lists: each row once, its scores added in the lists' order."""
    return _gather(parts, np.add, 0.0)


def best_by_row(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of one query from several lists: each row once, with the highest of its scores."""
    return _gather(parts, np.maximum, -np.inf)


def _gather(parts: Sequence[Candidates], combine: np.ufunc, start: float) -> Candidates:
    if not parts:
        return np.empty(0, dtype=np.int64), np.empty(0)
    rows, places = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    totals = np.full(len(rows), start)
    combine.at(totals, places, np.concatenate([part[1] for part in parts]))
    return rows, totals
