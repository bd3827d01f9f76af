"""How good retrieval is: judged queries (scifact) and questions whose own passage is known.

Owns the two tables and their keys. Documents are indexed whole, so that figures compare with published ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from strata.engine.questions import read_questions
from strata.engine.types import Question, RunWarnings
from strata.retrieval.build import build_index
from strata.retrieval.encode import encode_index
from strata.retrieval.encoders import EncoderSettings, SentenceEncoder, encoder_name
from strata.retrieval.evaluate import evaluate_ranking, rank_pages, read_qrels
from strata.retrieval.hits import Hit, load_hits
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.open_index import open_tools, parse_devices
from strata.retrieval.search import search
from strata.retrieval.search_config import Method, SearchConfig
from strata.scripts.bench.configs import RetrievalBenchConfig
from strata.scripts.bench.record import append_result, environment_line, print_table
from strata.scripts.index import require_packages
from strata.scripts.search import member_scorer, packages_for, read_asked

RESULTS = Path(__file__).parent / "results"
WHOLE_DOCUMENT_CHARS = 10_000_000
CUTOFFS = (1, 5, 10)
OWN_PASSAGE_SETS = ("kaggle200", "stem1k")
PASSAGES = "wiki_passages.jsonl"

Pages = Sequence[Sequence[str]]
"""[Q] page ids, best first."""


def run_retrieval_bench(config: RetrievalBenchConfig) -> int:
    """Measures every set that is there, prints tables and appends the figures. Returns the exit status."""
    print(environment_line())
    figures: dict[str, Any] = {}
    if (config.data / "scifact").is_dir():
        figures |= measure_judged(config)
    for name in OWN_PASSAGE_SETS:
        if (config.data / f"{name}.csv").is_file() and (config.data / PASSAGES).is_file():
            figures |= measure_own_passages(config, name)
    asked = {
        "encoder": Path(config.encoder).name if config.encoder else None,
        "cross_encoder": config.cross_encoder.name if config.cross_encoder else None,
        "member": config.member.name if config.member else None,
        "keep": config.keep,
        "limit": config.limit,
    }
    append_result("retrieval", {**figures, "config": asked}, RESULTS)
    return 0


def measure_judged(config: RetrievalBenchConfig) -> dict[str, float]:
    """nDCG@10 and recall@100 of every method and stage on scifact's training queries."""
    folder = config.data / "scifact"
    settings = replace(search_settings(config, "scifact", folder), questions=folder / "queries.jsonl")
    qrels = read_qrels(folder / "qrels" / "train.tsv")
    questions = [own for own in read_asked(settings, RunWarnings()) if own.id in qrels][: config.limit]
    ids = [question.id for question in questions]
    judged = {query: qrels[query] for query in ids}
    rows: list[dict[str, object]] = []
    figures: dict[str, float] = {}
    for method, pages in find_pages(settings, questions).items():
        means = evaluate_ranking(judged, dict(zip(ids, pages, strict=True))).means
        rows.append(
            {"scifact": method, "nDCG@10": means["nDCG@10"], "MAP": means["AP"], "R@100": means["R@100"]}
        )
        figures |= {f"ndcg10_{method}": means["nDCG@10"], f"recall100_{method}": means["R@100"]}
    print_table(rows)
    return figures


def measure_own_passages(config: RetrievalBenchConfig, name: str) -> dict[str, float]:
    """Share of questions that have their own passage among the first 1, 5, 10, by method.

    A question's own passage is the one that its context column holds, word for word.
    """
    source = config.data / PASSAGES
    settings = replace(search_settings(config, "passages", source), questions=config.data / f"{name}.csv")
    questions = read_questions(settings.questions, limit=config.limit, warnings=RunWarnings())
    owners = read_passage_ids(source)
    known = [question for question in questions if question.context.strip() in owners]
    own = [owners[question.context.strip()] for question in known]
    rows: list[dict[str, object]] = []
    figures: dict[str, float] = {}
    for method, pages in find_pages(settings, known).items():
        shares = {cutoff: own_passage_share(pages, own, cutoff) for cutoff in CUTOFFS}
        rows.append({name: method} | {f"own passage@{cutoff}": share for cutoff, share in shares.items()})
        figures |= {f"own_passage_at_{cutoff}_{name}_{method}": share for cutoff, share in shares.items()}
    print_table(rows)
    # The keys without a method are those of what one would use: BM25, fused with dense where there is one.
    best = "rrf" if config.encoder else "bm25"
    figures |= {
        f"own_passage_at_{cutoff}_{name}": figures[f"own_passage_at_{cutoff}_{name}_{best}"]
        for cutoff in CUTOFFS
    }
    return figures | {f"num_own_passage_{name}": len(known)}


def own_passage_share(pages: Pages, own: Sequence[str], cutoff: int) -> float:
    """Share of questions whose own page is among the first `cutoff` of theirs."""
    hits = [page in ranked[:cutoff] for ranked, page in zip(pages, own, strict=True)]
    return sum(hits) / len(hits)


def read_passage_ids(path: Path) -> dict[str, str]:
    """Ids of passages by their text."""
    with path.open(encoding="utf-8") as file:
        passages = [json.loads(line) for line in file]
    return {passage["text"].strip(): str(passage["_id"]) for passage in passages}


def search_settings(config: RetrievalBenchConfig, name: str, corpus: Path) -> SearchConfig:
    """Builds an index when there is none, and says how to search it."""
    index = IndexConfig(
        corpus=(corpus,),
        out=config.folder / name,
        chunk_chars=WHOLE_DOCUMENT_CHARS,
    )
    methods: tuple[Method, ...] = ("bm25", "bm25s", "tfidf")
    settings = SearchConfig(
        index=index.out,
        questions=corpus,
        method=(*methods, "dense") if config.encoder else methods,
        encoder=encoder_name(config.encoder) if config.encoder else None,
        keep=config.keep,
        cross_encoder=config.cross_encoder,
        member=config.member,
    )
    require_packages(packages_for(settings))
    build_index(index)
    if config.encoder:
        encode_index(
            index.out, SentenceEncoder(EncoderSettings(model=config.encoder, device=parse_devices("auto")[0]))
        )
    return settings


def find_pages(settings: SearchConfig, questions: Sequence[Question]) -> Mapping[str, Pages]:
    """Page ids by method: each alone, `rrf` (BM25 and dense, or TF-IDF without an encoder), `rerank`."""
    tools = open_tools(settings, member_scorer(settings))
    read = tools.read_chunks
    alone = replace(settings, cross_encoder=None, member=None)
    result = search(questions, alone, replace(tools, reranker=None))
    found: dict[str, Pages] = {
        method: _pages_of(load_hits(result.rankings[method], read)) for method in settings.methods
    }
    pair: tuple[Method, ...] = ("bm25", settings.methods[-1])
    fused = search(questions, replace(settings, method=pair), tools)
    found["rrf"] = _pages_of(load_hits(fused.rankings["rrf"], read))
    if "reranked" in fused.stages:
        found["rerank"] = _pages_of(fused.stages["reranked"])
    return found


def _pages_of(hits: Sequence[Sequence[Hit]]) -> Pages:
    return [rank_pages(own) for own in hits]
