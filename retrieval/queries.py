"""Turns questions into search queries and what was found for several queries of a question into one ranking.

A question may ask once (prompt and all options together) or once an option, merged by score. Knows nothing
of how a query is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strata.engine.types import Question
from strata.retrieval.rankings import Candidates, best_by_row, rank_candidates, read_candidates
from strata.retrieval.search_config import QueryForm
from strata.retrieval.types import Ranking, Searcher

PROMPT_REPEATS = {"prompt": 1, "prompt-options": 1, "prompt3-options": 3}
"""How often the prompt is in the query: three times weighs its words against those of five options."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Queries:
    """Query texts, and which question asks each: `owners` [number of texts] int64, ascending."""

    texts: tuple[str, ...]
    owners: np.ndarray
    num_questions: int


def build_queries(questions: Sequence[Question], form: QueryForm) -> Queries:
    """Writes the queries of all questions.

    Args:
        questions: Q questions; those without options ask with their prompt, whatever the form.
        form: `prompt`; `prompt-options` and `prompt3-options` (one query with all options); `option` (one
            query an option: prompt and that option).

    Returns:
        At least one query a question; a question of no text has an empty one.
    """
    texts: list[str] = []
    owners: list[int] = []
    for number, question in enumerate(questions):
        written = _write_queries(question, form)
        texts += written
        owners += [number] * len(written)
    return Queries(
        texts=tuple(texts), owners=np.asarray(owners, dtype=np.int64), num_questions=len(questions)
    )


def reader_query(question: Question) -> str:
    """Prompt and options, each once: what rerankers and orderings compare passages with."""
    return _write_queries(question, "prompt-options")[0]


def _write_queries(question: Question, form: QueryForm) -> list[str]:
    if form == "option" and question.options:
        return [_join([question.prompt, option]) for option in question.options]
    if form == "prompt":
        return [_join([question.prompt])]
    repeats = PROMPT_REPEATS.get(form, 1)
    return [_join([*[question.prompt] * repeats, *question.options])]


def _join(texts: Sequence[str]) -> str:
    return " ".join(text.strip() for text in texts if text.strip())


def search_questions(searcher: Searcher, queries: Queries, top_k: int) -> Ranking:
    """Searches for all queries and merges those of one question: a row's score is its best one.

    Args:
        searcher: what is searched.
        queries: the queries of Q questions; blank ones are not searched and find nothing.
        top_k: places of the ranking.

    Returns:
        A ranking of [Q, top_k].
    """
    asked = [place for place, text in enumerate(queries.texts) if text.strip()]
    if not asked:
        return rank_candidates([best_by_row([])] * queries.num_questions, top_k)
    ranking = searcher.search([queries.texts[place] for place in asked], top_k)
    return merge_by_score(ranking, queries.owners[asked], queries.num_questions, top_k)


def merge_by_score(ranking: Ranking, owners: np.ndarray, num_questions: int, top_k: int) -> Ranking:
    """Merges the rankings of several queries of one question; a row keeps the highest of its scores.

    Args:
        ranking: [N, k], one row of places a query.
        owners: [N] int64, the question that asks each query.
        num_questions: Q.
        top_k: places of the result.

    Returns:
        A ranking of [Q, top_k]; a question that asks nothing finds nothing.
    """
    parts: list[list[Candidates]] = [[] for _ in range(num_questions)]
    for query, owner in enumerate(owners):
        parts[owner].append(read_candidates(ranking, query))
    return rank_candidates([best_by_row(candidates) for candidates in parts], top_k)
