"""Fusion against sums written out by hand and by a dictionary."""

from __future__ import annotations

import numpy as np
import pytest

from strata.retrieval.rankings import rank_candidates
from strata.retrieval.refine.fuse import fuse, fuse_normalised_scores, fuse_reciprocal_ranks, scale_to_unit
from strata.retrieval.types import Ranking


def ranking(*queries: dict[int, float], top_k: int = 4) -> Ranking:
    return rank_candidates(
        [(np.array(list(scores), dtype=np.int64), np.array(list(scores.values()))) for scores in queries],
        top_k,
    )


def test_reciprocal_ranks_by_hand() -> None:
    fused = fuse_reciprocal_ranks([ranking({1: 9.0, 2: 8.0}), ranking({2: 0.7, 3: 0.1})], 3)
    assert fused.rows.tolist() == [[2, 1, 3]]
    assert fused.scores[0] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_reciprocal_ranks_do_not_see_scores_and_weights_count() -> None:
    first, second = ranking({1: 9.0, 2: 8.0}), ranking({2: 100.0, 1: 99.0})
    assert fuse_reciprocal_ranks([first, second], 2).rows.tolist() == [[1, 2]]
    assert fuse_reciprocal_ranks([first, second], 2, weights=[1, 2]).rows.tolist() == [[2, 1]]


def test_normalised_scores_by_hand() -> None:
    fused = fuse_normalised_scores([ranking({1: 30.0, 2: 20.0, 3: 10.0}), ranking({3: -1.0, 4: -2.0})], 4)
    assert fused.rows.tolist() == [[1, 3, 2, 4]]
    assert fused.scores[0] == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_equal_scores_count_as_one_and_no_scores_as_nothing() -> None:
    assert scale_to_unit(np.array([3.0, 3.0])).tolist() == [1.0, 1.0]
    assert scale_to_unit(np.empty(0)).tolist() == []


def test_a_query_that_one_searcher_finds_nothing_for() -> None:
    fused = fuse_reciprocal_ranks([ranking({}, {5: 1.0}), ranking({7: 1.0}, {})], 2)
    assert fused.rows.tolist() == [[7, -1], [5, -1]]


def test_random_rankings_match_a_dictionary() -> None:
    random = np.random.default_rng(1)
    rankings = [
        ranking(*[dict.fromkeys(random.permutation(30)[:10].tolist(), 0.0) for _ in range(5)], top_k=10)
        for _ in range(3)
    ]
    fused = fuse(rankings, "rrf", 8, weights=[1.0, 0.5, 2.0], rrf_k=10)
    for query in range(5):
        sums: dict[int, float] = {}
        for part, weight in zip(rankings, [1.0, 0.5, 2.0], strict=True):
            for rank, row in enumerate(part.rows[query].tolist(), start=1):
                sums[row] = sums.get(row, 0.0) + weight / (10 + rank)
        expected = sorted(sums, key=lambda row: (-np.float32(sums[row]), row))[:8]
        assert fused.rows[query].tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rankings": []}, "at least one"),
        ({"rankings": [ranking({}), ranking({}, {})]}, "same queries"),
        ({"weights": [1.0, 2.0]}, "2 weight"),
        ({"weights": [-1.0]}, "0 or more"),
        ({"weights": [float("nan")]}, "0 or more"),
        ({"rrf_k": -1}, "rrf_k is -1"),
    ],
)
def test_what_means_nothing_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse_reciprocal_ranks(**({"rankings": [ranking({1: 1.0})], "top_k": 1} | arguments))
