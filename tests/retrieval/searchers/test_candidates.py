"""Candidates and rankings: ties, missing places, rounding."""

from __future__ import annotations

import numpy as np
import pytest

from strata.retrieval.searchers.candidates import best_by_row, found, rank_candidates, sum_by_row


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


def test_found_gives_back_what_was_ranked() -> None:
    ranking = rank_candidates([candidates([4, 6], [-1.5, 2.5])], 5)
    rows, scores = found(ranking, 0)
    assert (rows.tolist(), scores.tolist()) == ([6, 4], [2.5, -1.5])


def test_nan_and_no_places_are_refused() -> None:
    with pytest.raises(FloatingPointError, match="query 0"):
        rank_candidates([candidates([1], [np.nan])], 2)
    with pytest.raises(ValueError, match="top_k is 0"):
        rank_candidates([], 0)
