"""Queries: what is asked in each form, and how several answers of one question become one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from strata.engine.types import Question
from strata.retrieval.queries import build_queries, merge_by_score, reader_query, search_questions
from strata.retrieval.rankings import rank_candidates
from strata.retrieval.types import Ranking

QUESTIONS = [
    Question(id="a", prompt=" Why? ", options=("one", "", "two")),
    Question(id="b", prompt="", options=()),
    Question(id="c", prompt="Alone", options=()),
]


class FakeSearcher:
    """Row r has score 10 - |r - length of the query|."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def search(self, queries: Sequence[str], top_k: int) -> Ranking:
        self.asked += queries
        rows = np.arange(20, dtype=np.int64)
        return rank_candidates([(rows, 10.0 - np.abs(rows - len(query))) for query in queries], top_k)


@pytest.mark.parametrize(
    ("form", "texts", "owners"),
    [
        ("prompt", ["Why?", "", "Alone"], [0, 1, 2]),
        ("prompt-options", ["Why? one two", "", "Alone"], [0, 1, 2]),
        ("prompt3-options", ["Why? Why? Why? one two", "", "Alone Alone Alone"], [0, 1, 2]),
        ("option", ["Why? one", "Why?", "Why? two", "", "Alone"], [0, 0, 0, 1, 2]),
    ],
)
def test_each_form_asks_for_its_texts(form, texts: list[str], owners: list[int]) -> None:
    queries = build_queries(QUESTIONS, form)
    assert list(queries.texts) == texts
    assert queries.owners.tolist() == owners
    assert queries.num_questions == 3


def test_readers_see_prompt_and_options_once() -> None:
    assert reader_query(QUESTIONS[0]) == "Why? one two"


def test_a_row_keeps_the_best_score_of_a_question_s_queries() -> None:
    searcher = FakeSearcher()
    queries = build_queries(QUESTIONS[:1], "option")
    ranking = search_questions(searcher, queries, 3)
    # Queries of 8, 4 and 8 characters: rows 4 and 8 are hit exactly.
    assert ranking.rows.tolist() == [[4, 8, 3]]
    assert ranking.scores.tolist() == [[10.0, 10.0, 9.0]]


def test_blank_queries_are_not_searched_and_find_nothing() -> None:
    searcher = FakeSearcher()
    ranking = search_questions(searcher, build_queries(QUESTIONS, "prompt"), 2)
    assert searcher.asked == ["Why?", "Alone"]
    assert ranking.rows.tolist() == [[4, 3], [-1, -1], [5, 4]]


def test_nothing_but_blank_queries() -> None:
    ranking = search_questions(FakeSearcher(), build_queries(QUESTIONS[1:2], "prompt"), 2)
    assert ranking.rows.tolist() == [[-1, -1]]


def test_merging_matches_a_dictionary() -> None:
    random = np.random.default_rng(0)
    parts = [(random.permutation(50)[:12].astype(np.int64), random.normal(size=12)) for _ in range(9)]
    owners = np.array([0, 0, 0, 2, 2, 3, 3, 3, 3])
    merged = merge_by_score(rank_candidates(parts, 12), owners, 4, 10)
    for question in range(4):
        best: dict[int, float] = {}
        for (rows, scores), owner in zip(parts, owners, strict=True):
            for row, score in zip(rows.tolist(), scores.astype(np.float32).tolist(), strict=True):
                if owner == question:
                    best[row] = max(score, best.get(row, -np.inf))
        expected = sorted(best, key=lambda row: (-best[row], row))[:10]
        assert merged.rows[question].tolist() == expected + [-1] * (10 - len(expected))
