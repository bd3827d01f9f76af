"""The search of a job: every method, fusion, sentences, reranking, order. Composes stages that are elsewhere.

Knows no file but the index: questions come in, hits go out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from strata.engine.types import Question
from strata.retrieval.queries import build_queries, reader_query, search_questions
from strata.retrieval.refine.fuse import fuse
from strata.retrieval.refine.hits import ReadChunks, load_hits
from strata.retrieval.refine.order import order_hits, pick_order
from strata.retrieval.refine.rerank import TextScorer, rerank_hits
from strata.retrieval.refine.two_stage import PageReader, best_of_pages, search_sentences
from strata.retrieval.search_config import SearchConfig
from strata.retrieval.types import Hit, Ranking, Searcher

Advance = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class SearchTools:
    """What a search works with.

    `searchers` by method; `read_chunks` and `num_rows` are the index's. `embedding` compares texts by the
    index's encoder, `sentences` compares queries with sentences, `reranker` reranks; None where not wanted.
    `close` ends what some of them started outside this process.
    """

    searchers: Mapping[str, Searcher]
    read_chunks: ReadChunks
    num_rows: int
    embedding: TextScorer | None = None
    sentences: TextScorer | None = None
    reranker: TextScorer | None = None
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResult:
    """What a search found.

    `rankings` holds each method's and, where there are several, the fused one (under `rrf` or `scores`), all
    [Q, candidates]. `stages` holds the hits [Q] after each stage, best first: `found` (the last ranking's),
    then `sentences`, `reranked` and `ordered` where they were wanted.
    """

    rankings: Mapping[str, Ranking]
    stages: Mapping[str, list[list[Hit]]]

    @property
    def hits(self) -> list[list[Hit]]:
        """[Q] what the last stage left."""
        return list(self.stages.values())[-1]


def search(
    questions: Sequence[Question],
    config: SearchConfig,
    tools: SearchTools,
    advance: Advance = lambda count: None,
) -> SearchResult:
    """Runs all stages for all questions.

    Args:
        questions: Q questions.
        config: which stages, and how.
        tools: searchers and scorers.
        advance: told 1 after each of `num_stages(config)` stages.

    Returns:
        Rankings of every method and the hits after every stage.

    Raises:
        ValueError: a stage lacks its scorer.
        FloatingPointError: a scorer gave NaN.
    """
    rankings = search_methods(questions, config, tools.searchers, advance)
    found = load_hits(list(rankings.values())[-1], tools.read_chunks, config.keep)
    return SearchResult(rankings=rankings, stages=_refine(questions, found, config, tools, advance))


def num_stages(config: SearchConfig) -> int:
    """Stages that `search` reports: one a method and one for each later stage, whether it does anything."""
    return len(config.methods) + 3


def search_methods(
    questions: Sequence[Question],
    config: SearchConfig,
    searchers: Mapping[str, Searcher],
    advance: Advance = lambda count: None,
) -> dict[str, Ranking]:
    """Rankings [Q, candidates] by method, in the configuration's order; the fused one last, if any."""
    queries = build_queries(questions, config.query)
    rankings: dict[str, Ranking] = {}
    for method in config.methods:
        rankings[method] = search_questions(searchers[method], queries, config.candidates)
        advance(1)
    if len(rankings) > 1:
        parts = list(rankings.values())
        rankings[config.fusion] = fuse(parts, config.fusion, config.candidates, config.weight, config.rrf_k)
    return rankings


def _refine(
    questions: Sequence[Question],
    hits: list[list[Hit]],
    config: SearchConfig,
    tools: SearchTools,
    advance: Advance = lambda count: None,
) -> dict[str, list[list[Hit]]]:
    """Hits after each stage: `found` (those given), then `sentences`, `reranked`, `ordered` where wanted."""
    texts = [reader_query(question) for question in questions]
    stages = {"found": hits}
    if config.pages:
        if tools.sentences is None:
            raise ValueError("two-stage search needs a sentence scorer; got none")
        reader = PageReader(tools.read_chunks, tools.num_rows)
        pages = [best_of_pages(found, config.pages) for found in hits]
        hits = stages["sentences"] = search_sentences(texts, pages, reader, tools.sentences, config.keep)
    advance(1)
    if tools.reranker is not None:
        hits = stages["reranked"] = rerank_hits(texts, hits, tools.reranker, config.keep)
    advance(1)
    if (scorer := pick_order(config.order, tools.embedding)) is not None:
        stages["ordered"] = order_hits(texts, hits, scorer, config.order_top)
    advance(1)
    return stages


def refine_method(
    method: str, result: SearchResult, questions: Sequence[Question], config: SearchConfig, tools: SearchTools
) -> list[list[Hit]]:
    """The final hits [Q] that one of a result's methods alone would have led to."""
    hits = load_hits(result.rankings[method], tools.read_chunks, config.keep)
    return list(_refine(questions, hits, config, tools).values())[-1]
