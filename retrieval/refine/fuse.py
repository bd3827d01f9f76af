"""Fuses the rankings of several searchers into one: by reciprocal ranks, or by normalised scores.

Legend: Q queries, k places of a ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from strata.retrieval.rankings import Candidates, rank_candidates, read_candidates, sum_by_row
from strata.retrieval.search_config import RRF_K, Fusion
from strata.retrieval.types import Ranking


def fuse(
    rankings: Sequence[Ranking], method: Fusion, top_k: int, weights: Sequence[float] = (), rrf_k: int = RRF_K
) -> Ranking:
    """Fuses rankings by the method of that name: `fuse_reciprocal_ranks` or `fuse_normalised_scores`."""
    if method == "rrf":
        return fuse_reciprocal_ranks(rankings, top_k, weights, rrf_k)
    return fuse_normalised_scores(rankings, top_k, weights)


def fuse_reciprocal_ranks(
    rankings: Sequence[Ranking], top_k: int, weights: Sequence[float] = (), rrf_k: int = RRF_K
) -> Ranking:
    """Scores a row by the sum over rankings of weight / (rrf_k + rank), ranks counted from 1.

    Source: Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank
    learning methods", SIGIR 2009.

    Args:
        rankings: of the same Q queries, each [Q, k]; k may differ.
        top_k: places of the result.
        weights: one a ranking; all 1 when empty.
        rrf_k: the higher, the less the first places stand out.

    Returns:
        A ranking of [Q, top_k]; a row that a ranking does not have gets nothing from it.

    Raises:
        ValueError: no ranking, different numbers of queries or weights, a negative weight or `rrf_k`.
    """
    if rrf_k < 0:
        raise ValueError(f"rrf_k is {rrf_k}; expected 0 or more")

    def reciprocal_ranks(scores: np.ndarray) -> np.ndarray:
        return 1.0 / (rrf_k + np.arange(1, len(scores) + 1))

    return _fuse(rankings, top_k, weights, reciprocal_ranks)


def fuse_normalised_scores(rankings: Sequence[Ranking], top_k: int, weights: Sequence[float] = ()) -> Ranking:
    """Scores a row by the weighted sum of its scores, each ranking's scaled to 0..1 a query.

    Source: CombSUM of Fox and Shaw, "Combination of multiple searches", TREC-2, 1994, on the min-max scores
    of Lee, "Analyses of multiple evidence combination", SIGIR 1997.

    Args, Returns and Raises: as for `fuse_reciprocal_ranks`. The last place of a ranking counts as much as
    absence; where all scores of a query are equal, each counts as 1.
    """
    return _fuse(rankings, top_k, weights, scale_to_unit)


def scale_to_unit(scores: np.ndarray) -> np.ndarray:
    """Min-max: (score - min) / (max - min) of [n] scores; all 1 when they are equal."""
    if not len(scores):
        return scores
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)


def _fuse(
    rankings: Sequence[Ranking],
    top_k: int,
    weights: Sequence[float],
    score: Callable[[np.ndarray], np.ndarray],
) -> Ranking:
    shares = _check(rankings, weights)
    fused: list[Candidates] = []
    for query in range(len(rankings[0].rows)):
        parts = []
        for ranking, share in zip(rankings, shares, strict=True):
            rows, scores = read_candidates(ranking, query)
            parts.append((rows, share * score(scores)))
        fused.append(sum_by_row(parts))
    return rank_candidates(fused, top_k)


def _check(rankings: Sequence[Ranking], weights: Sequence[float]) -> Sequence[float]:
    """The weight of each ranking."""
    sizes = sorted({len(ranking.rows) for ranking in rankings})
    if len(sizes) != 1:
        raise ValueError(f"rankings of {sizes} queries; expected at least one, all of the same queries")
    if weights and len(weights) != len(rankings):
        raise ValueError(f"{len(weights)} weight(s) for {len(rankings)} ranking(s); expected one each")
    if any(not 0 <= weight < np.inf for weight in weights):
        raise ValueError(f"weights {list(weights)}; expected numbers of 0 or more")
    return weights or [1.0] * len(rankings)
