"""Best places: like a full sort, ties by row."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.retrieval.searchers.ranking import best_places, empty_ranking


@given(st.lists(st.integers(0, 6), max_size=80), st.integers(1, 12), st.randoms())
@settings(max_examples=200, deadline=None)
def test_equals_a_full_sort(values: list[int], top_k: int, rng) -> None:
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
