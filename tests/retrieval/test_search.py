"""The search of a job: stages in their order, each seeing what the one before left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import Question
from strata.retrieval.rankings import rank_candidates
from strata.retrieval.refine.order import edit_similarity
from strata.retrieval.refine.rerank import score_each
from strata.retrieval.search import SearchTools, num_stages, refine_method, search
from strata.retrieval.search_config import SearchConfig
from strata.retrieval.types import Chunk, Ranking

TEXTS = ["red cat. blue cat.", "green dog.", "red dog. Old dog.", "blue bird."]
CHUNKS = [
    Chunk(id=f"p{row}#0", page=f"p{row}", title="", section="", text=text) for row, text in enumerate(TEXTS)
]
QUESTIONS = [
    Question(id="a", prompt="dog", options=("red", "old")),
    Question(id="b", prompt=" ", options=("", "")),
    Question(id="c", prompt="blue", options=("cat", "bird")),
]


class SharedWords:
    """Scores a chunk by the words it shares with the query; `by_row` adds a little for later rows."""

    def __init__(self, by_row: float = 0.0) -> None:
        self.by_row = by_row

    def search(self, queries: Sequence[str], top_k: int) -> Ranking:
        candidates = []
        for query in queries:
            words = set(query.split())
            scores = np.array(
                [len(words & set(text.lower().replace(".", "").split())) for text in TEXTS], dtype=float
            )
            rows = np.flatnonzero(scores > 0)
            candidates.append((rows, scores[rows] + self.by_row * rows))
        return rank_candidates(candidates, top_k)


def tools(**changed) -> SearchTools:
    defaults = {
        "searchers": {"bm25": SharedWords(), "tfidf": SharedWords(by_row=2.0)},
        "read_chunks": lambda rows: [CHUNKS[row] for row in rows],
        "num_rows": len(CHUNKS),
    }
    return SearchTools(**(defaults | changed))


def config(**settings) -> SearchConfig:
    return SearchConfig(index=Path("i"), questions=Path("q"), out=Path("o.csv"), **settings)


def rows(hits: Sequence[Sequence]) -> list[list[int]]:
    return [[hit.row for hit in found] for found in hits]


def test_one_method() -> None:
    result = search(QUESTIONS, config(), tools())
    assert rows(result.hits) == [[2, 0, 1], [], [0, 3]]
    assert list(result.rankings) == ["bm25"]
    assert list(result.stages) == ["found"]


def test_two_methods_are_fused_with_their_weights() -> None:
    result = search(QUESTIONS, config(method=("bm25", "tfidf"), weight=(0.0, 1.0)), tools())
    assert list(result.rankings) == ["bm25", "tfidf", "scores"]
    # tfidf alone: dog scores 2 + 4, 1 + 2, 1 + 0 by row.
    assert rows(result.hits)[0] == [2, 1, 0]
    assert rows(result.hits)[2] == [3, 0]
    evenly = search(QUESTIONS, config(method=("bm25", "tfidf")), tools())
    assert evenly.rankings["scores"].scores[0, 0] == pytest.approx(2.0)
    by_ranks = search(QUESTIONS, config(method=("bm25", "tfidf"), fusion="rrf"), tools())
    assert list(by_ranks.rankings) == ["bm25", "tfidf", "rrf"]
    assert by_ranks.rankings["rrf"].scores[0, 0] == pytest.approx(2 / 61)


def test_kept_hits_are_those_that_go_on() -> None:
    seen = []

    def scorer(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        seen.append((list(queries), [len(group) for group in texts]))
        return [list(range(len(group))) for group in texts]

    result = search(QUESTIONS, config(keep=2), tools(reranker=scorer))
    assert seen == [(["dog red old", "blue cat bird"], [2, 2])]
    assert rows(result.hits) == [[0, 2], [], [3, 0]]
    assert rows(result.stages["found"]) == [[2, 0], [], [0, 3]]


def test_sentences_then_reranking_then_order() -> None:
    shortest_last = score_each(lambda query, texts: [len(text) for text in texts])
    in_text = score_each(lambda query, texts: [float("Old" in text) for text in texts])
    settings = config(pages=1, order="edit-distance", order_top=1)
    result = search(QUESTIONS[:1], settings, tools(sentences=in_text, reranker=shortest_last))
    assert list(result.stages) == ["found", "sentences", "reranked", "ordered"]
    assert [hit.chunk.text for hit in result.stages["sentences"][0]] == ["Old dog.", "red dog."]
    assert [hit.chunk.text for hit in result.stages["reranked"][0]] == ["Old dog.", "red dog."]
    # Of the sentences, the order sees the best one only; the other follows with the score it had.
    assert [hit.chunk.text for hit in result.hits[0]] == ["Old dog.", "red dog."]
    similarity = edit_similarity(["dog red old"], [["Old dog."]])[0][0]
    assert [hit.score for hit in result.hits[0]] == pytest.approx([similarity, 8.0])


@pytest.mark.parametrize(
    ("top", "expected"), [(1, [2, 0, 1]), (2, [0, 2, 1]), (3, [1, 0, 2]), (9, [1, 0, 2])]
)
def test_what_is_not_ordered_follows_by_score(
    top: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts_seen: list[int] = []

    def longest_last(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        texts_seen.extend(len(group) for group in texts)
        return [
            [-float(TEXTS.index(text) % 2 == 0) * 10 - TEXTS.index(text) for text in group] for group in texts
        ]

    monkeypatch.setattr("strata.retrieval.refine.order.edit_similarity", longest_last)
    result = search(QUESTIONS[:1], config(order="edit-distance", order_top=top), tools())
    assert rows(result.stages["found"]) == [[2, 0, 1]]
    assert rows(result.hits) == [expected]
    assert texts_seen == [min(top, 3)]


def test_each_method_alone_gives_its_own_hits() -> None:
    settings = config(method=("bm25", "tfidf"))
    result = search(QUESTIONS, settings, tools())
    assert rows(refine_method("tfidf", result, QUESTIONS, settings, tools()))[0] == [2, 1, 0]
    assert rows(refine_method("bm25", result, QUESTIONS, settings, tools()))[0] == [2, 0, 1]


def test_every_stage_is_reported() -> None:
    advanced: list[int] = []
    settings = config(method=("bm25", "tfidf"))
    search(QUESTIONS, settings, tools(), advanced.append)
    assert sum(advanced) == num_stages(settings)


@pytest.mark.parametrize("settings", [{"pages": 1}, {"order": "embedding"}])
def test_a_stage_without_its_scorer_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="scorer; got none"):
        search(QUESTIONS, config(**settings), tools())
