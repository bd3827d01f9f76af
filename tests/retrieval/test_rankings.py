"""Candidates and rankings: ties, missing places, rounding; the best places as a full sort finds them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.retrieval.rankings import (
    best_by_row,
    best_places,
    empty_ranking,
    rank_candidates,
    read_candidates,
    sum_by_row,
)


def candidates(rows: list[int], scores: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(rows, dtype=np.int64), np.array(scores, dtype=np.float64)


def test_best_come_first_and_missing_places_are_marked() -> None:
    ranking = rank_candidates([candidates([7, 3, 9], [0.1, 0.5, 0.2]), candidates([], [])], 4)
    assert ranking.rows.tolist() == [[3, 9, 7, -1], [-1] * 4]
    assert ranking.scores[0, 3] == -np.inf
    assert (ranking.scores[1] == -np.inf).all()
    assert (ranking.rows.dtype, ranking.scores.dtype) == (np.int64, np.float32)


def test_scores_that_float32_cannot_tell_apart_are_ties_by_row() -> None:
    ranking = rank_candidates([candidates([8, 2], [1.0 + 1e-12, 1.0])], 2)
    assert ranking.rows.tolist() == [[2, 8]]


def test_a_tie_over_the_last_place_keeps_the_lower_rows() -> None:
    rows = np.arange(100, dtype=np.int64)[::-1].copy()
    assert rank_candidates([(rows, np.ones(100))], 3).rows.tolist() == [[0, 1, 2]]


def test_rows_of_several_lists_are_added_or_the_best_is_kept() -> None:
    parts = [candidates([1, 5], [1.0, 2.0]), candidates([5, 9], [4.0, 8.0])]
    rows, scores = sum_by_row(parts)
    assert (rows.tolist(), scores.tolist()) == ([1, 5, 9], [1.0, 6.0, 8.0])
    rows, scores = best_by_row(parts)
    assert (rows.tolist(), scores.tolist()) == ([1, 5, 9], [1.0, 4.0, 8.0])


def test_candidates_are_read_as_they_were_ranked() -> None:
    ranking = rank_candidates([candidates([4, 6], [-1.5, 2.5])], 5)
    rows, scores = read_candidates(ranking, 0)
    assert (rows.tolist(), scores.tolist()) == ([6, 4], [2.5, -1.5])


def test_nan_and_no_places_are_refused() -> None:
    with pytest.raises(FloatingPointError, match="query 0"):
        rank_candidates([candidates([1], [np.nan])], 2)
    with pytest.raises(ValueError, match="top_k is 0"):
        rank_candidates([], 0)


@given(st.lists(st.integers(0, 6), max_size=80), st.integers(1, 12), st.randoms())
@settings(max_examples=200, deadline=None)
def test_best_places_equal_a_full_sort(values: list[int], top_k: int, rng) -> None:
    rows = list(range(100, 100 + len(values)))
    rng.shuffle(rows)
    expected = sorted(zip(rows, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:top_k]
    best, scores = best_places(np.array(values, dtype=np.float32), np.array(rows, dtype=np.int64), top_k)
    assert list(zip(best.tolist(), scores.tolist(), strict=True)) == expected
    assert (best.dtype, scores.dtype) == (np.int64, np.float32)


def test_empty_ranking() -> None:
    ranking = empty_ranking(2, 3)
    assert ranking.rows.tolist() == [[-1] * 3] * 2
    assert np.isneginf(ranking.scores).all()
    assert (ranking.rows.dtype, ranking.scores.dtype) == (np.int64, np.float32)
