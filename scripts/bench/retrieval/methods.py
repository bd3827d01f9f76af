"""Part of the retrieval bench: the pages that each method, each fusion and a reranker find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from strata.engine.types import Question
from strata.retrieval.evaluate import rank_pages
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.encoders import Encoder
from strata.retrieval.open_index import open_tools
from strata.retrieval.queries import build_queries, reader_query, search_questions
from strata.retrieval.refine.fuse import fuse
from strata.retrieval.refine.hits import load_hits
from strata.retrieval.refine.rerank import SentenceScorer, TextScorer, blend_hits, rerank_hits
from strata.retrieval.search import SearchTools
from strata.retrieval.search_config import Fusion, SearchConfig
from strata.retrieval.types import NO_ROW, Hit, Ranking
from strata.scripts.bench.configs import RetrievalBenchConfig
from strata.scripts.search import member_scorer

Pages = Sequence[Sequence[str]]
"""[Q] page ids, best first, each once."""

FUSIONS: tuple[Fusion, ...] = ("rrf", "scores")


def find_pages(
    settings: SearchConfig, questions: Sequence[Question], encoder: Encoder | None
) -> Mapping[str, Pages]:
    """Page ids by method: each alone; `rrf` and `scores` of BM25 and the last method; two of a reranker.

    The last method is dense search, or TF-IDF without an encoder. The reranker sees the best of the settings'
    fusion: `rerank_alone` is the order of its scores, `rerank` that of these and the fusion's at equal
    weights. Both are missing without anything to rerank by.
    """
    with member_scorer(settings) as member, closing(open_tools(settings, member, encoder)) as tools:
        return find_pages_with(tools, settings, questions)


def find_pages_with(
    tools: SearchTools, settings: SearchConfig, questions: Sequence[Question]
) -> Mapping[str, Pages]:
    """Page ids by method, with an index that is open; see `find_pages`."""
    queries = build_queries(questions, settings.query)
    rankings = {
        method: search_questions(searcher, queries, settings.candidates)
        for method, searcher in tools.searchers.items()
    }
    pair = [rankings["bm25"], rankings[settings.methods[-1]]]
    rankings |= {fusion: fuse(pair, fusion, settings.candidates) for fusion in FUSIONS}
    page_of_row = [chunk.page for chunk in ChunkStore(settings.index)]
    found = {method: pages_of(ranking, page_of_row) for method, ranking in rankings.items()}
    if (reranker := pick_reranker(tools)) is not None:
        texts = [reader_query(question) for question in questions]
        best = load_hits(rankings[settings.fusion], tools.read_chunks, settings.keep)
        alone = rerank_hits(texts, best, reranker, settings.keep)
        others = found[settings.fusion]
        found |= {"rerank": follow(blend_hits(best, alone), others), "rerank_alone": follow(alone, others)}
    return found


def pages_of(ranking: Ranking, page_of_row: Sequence[str]) -> list[list[str]]:
    """The pages of a ranking's rows, each once, where its best row is."""
    return [
        list(dict.fromkeys(page_of_row[row] for row in rows if row != NO_ROW))
        for rows in ranking.rows.tolist()
    ]


def follow(first: Sequence[Sequence[Hit]], pages: Pages) -> list[list[str]]:
    """The pages of hits that were reranked, then the others as they were."""
    return [
        list(dict.fromkeys([*rank_pages(hits), *others])) for hits, others in zip(first, pages, strict=True)
    ]


def pick_reranker(tools: SearchTools) -> TextScorer | None:
    """The cross-encoder or member that was asked for, else the encoder's view of sentences, else None."""
    if tools.reranker is not None or tools.embedding is None:
        return tools.reranker
    return SentenceScorer(tools.embedding)


def reranker_name(config: RetrievalBenchConfig) -> str | None:
    """What the rows `rerank` rerank by; None where there is nothing."""
    if config.cross_encoder is not None:
        return f"cross-encoder {config.cross_encoder.name}"
    if config.member is not None:
        return f"member {config.member.name}"
    if config.encoder is not None:
        return f"nearest sentence by {Path(config.encoder).name}"
    return None
