"""Places of a ranking: the best of many scored rows, ties by row. Knows nothing of where scores come from."""

from __future__ import annotations

import numpy as np

from strata.retrieval.types import NO_ROW, Ranking


def empty_ranking(num_queries: int, top_k: int) -> Ranking:
    """A ranking whose places nothing takes yet: [Q, k] rows -1, scores minus infinity."""
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
