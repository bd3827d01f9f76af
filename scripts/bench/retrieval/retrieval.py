"""`strata bench retrieval`: how good retrieval is on judged queries and on questions whose passage is known.

Owns the sets, the table and its keys. Documents are indexed whole, so figures compare with published ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from strata.engine.questions.question_file import read_questions
from strata.engine.types import InputError, Question, RunWarnings
from strata.retrieval.corpus.chunk import searchable_text
from strata.retrieval.evaluate import Qrels, evaluate_ranking, read_qrels
from strata.retrieval.index.build import build_index
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.encode import encode_index
from strata.retrieval.index.encoders import Encoder, EncoderSettings, SentenceEncoder
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.open_index import parse_devices
from strata.retrieval.search_config import Method, SearchConfig
from strata.scripts.bench.configs import RetrievalBenchConfig
from strata.scripts.bench.record import RESULTS, append_result, print_environment, print_table
from strata.scripts.bench.retrieval.first_pass import measure_first_passes
from strata.scripts.bench.retrieval.methods import Pages, find_pages, reranker_name
from strata.scripts.bench.timing import median_seconds
from strata.scripts.index import require_packages
from strata.scripts.search import packages_for, read_asked

WHOLE_DOCUMENT_CHARS = 10_000_000
CUTOFFS = (1, 5, 10)
SCIFACT = "scifact"
KNOWN_PASSAGE_SETS = ("kaggle200", "stem1k")
PASSAGES = "wiki_passages.jsonl"
RATE_CHUNKS = 512
RATE_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Questions, the pages each should find, and how to search the index of its corpus."""

    name: str
    settings: SearchConfig
    questions: Sequence[Question]
    qrels: Qrels


def run_retrieval_bench(config: RetrievalBenchConfig) -> int:
    """Measures every set that is there, prints tables and appends the figures. Returns the exit status."""
    print_environment()
    encoder = load_encoder(config)
    rows: dict[str, dict[str, object]] = {}
    figures: dict[str, Any] = {}
    sets = list(open_sets(config, encoder))
    if not sets:
        raise InputError(
            f"--data: {config.data}; expected scifact/, or kaggle200.csv or stem1k.csv with {PASSAGES}"
        )
    for one in sets:
        for method, pages in find_pages(one.settings, one.questions, encoder).items():
            measures = measure(one, pages)
            rows.setdefault(method, {"method": method}).update(columns(one.name, measures))
            figures |= {f"{key}_{method}": value for key, value in measures.items()}
        figures |= default_figures(one, figures, config)
    print_table(list(rows.values()))
    print(f"rerank: {reranker_name(config)}")
    if encoder is not None:
        figures |= measure_dense(sets, encoder)
    append_result("retrieval", {**figures, "config": describe(config)}, RESULTS)
    return 0


def load_encoder(config: RetrievalBenchConfig) -> Encoder | None:
    """The encoder of dense search, None where none is asked for."""
    if config.encoder is None:
        return None
    require_packages(("sentence_transformers",))
    return SentenceEncoder(EncoderSettings(model=config.encoder, device=parse_devices("auto")[0]))


def open_sets(config: RetrievalBenchConfig, encoder: Encoder | None) -> Iterator[QuestionSet]:
    """Yields the sets that are there, their indexes built and embedded where they were not."""
    folder, passages = config.data / SCIFACT, config.data / PASSAGES
    if folder.is_dir():
        settings = search_settings(config, SCIFACT, folder, folder / "queries.jsonl", encoder)
        yield judged_set(settings, read_qrels(folder / "qrels" / "train.tsv"), config.limit)
    for name in KNOWN_PASSAGE_SETS:
        questions = config.data / f"{name}.csv"
        if questions.is_file() and passages.is_file():
            settings = search_settings(config, "passages", passages, questions, encoder)
            yield known_passage_set(name, settings, read_passage_ids(passages), config.limit)


def search_settings(
    config: RetrievalBenchConfig, name: str, corpus: Path, questions: Path, encoder: Encoder | None
) -> SearchConfig:
    """Builds an index when there is none, and says how to search it."""
    index = IndexConfig(corpus=(corpus,), out=config.folder / name, chunk_chars=WHOLE_DOCUMENT_CHARS)
    methods: tuple[Method, ...] = ("bm25", "bm25s", "tfidf")
    settings = SearchConfig(
        index=index.out,
        questions=questions,
        method=methods if encoder is None else (*methods, "dense"),
        encoder=None if encoder is None else encoder.name,
        keep=config.keep,
        cross_encoder=config.cross_encoder,
        member=config.member,
    )
    require_packages(packages_for(settings))
    build_index(index)
    if encoder is not None:
        encode_index(index.out, encoder)
    return settings


def judged_set(settings: SearchConfig, qrels: Qrels, limit: int | None) -> QuestionSet:
    """The queries that somebody judged."""
    questions = [query for query in read_asked(settings, RunWarnings()) if query.id in qrels][:limit]
    return QuestionSet(
        name=SCIFACT,
        settings=settings,
        questions=questions,
        qrels={question.id: qrels[question.id] for question in questions},
    )


def known_passage_set(
    name: str, settings: SearchConfig, owners: Mapping[str, str], limit: int | None
) -> QuestionSet:
    """The questions whose context column is, word for word, a passage: that is the one to find."""
    asked = read_questions(settings.questions, limit=limit, warnings=RunWarnings())
    questions = [question for question in asked if question.context.strip() in owners]
    qrels = {question.id: {owners[question.context.strip()]: 1} for question in questions}
    return QuestionSet(name=name, settings=settings, questions=questions, qrels=qrels)


def read_passage_ids(path: Path) -> dict[str, str]:
    """Ids of passages by their text."""
    with path.open(encoding="utf-8") as file:
        passages = [json.loads(line) for line in file]
    return {passage["text"].strip(): str(passage["_id"]) for passage in passages}


def measure(asked: QuestionSet, pages: Pages) -> dict[str, float]:
    """nDCG@10 and recall@100 of judged queries, else how often the known passage is found; by JSON key."""
    if asked.name == SCIFACT:
        ids = [question.id for question in asked.questions]
        means = evaluate_ranking(asked.qrels, dict(zip(ids, pages, strict=True))).means
        return {"ndcg10": means["nDCG@10"], "recall100": means["R@100"]}
    wanted = [next(iter(asked.qrels[question.id])) for question in asked.questions]
    return {key: known_passage_share(pages, wanted, cut) for cut, key in passage_keys(asked.name).items()}


def passage_keys(name: str) -> dict[int, str]:
    """JSON keys of a set's shares, by how many places count."""
    return {cutoff: f"own_passage_at_{cutoff}_{name}" for cutoff in CUTOFFS}


def known_passage_share(pages: Pages, wanted: Sequence[str], cutoff: int) -> float:
    """Share of questions whose known page is among the first `cutoff` that they find."""
    hits = [page in ranked[:cutoff] for ranked, page in zip(pages, wanted, strict=True)]
    return sum(hits) / len(hits)


def columns(name: str, measures: Mapping[str, float]) -> dict[str, object]:
    """A set's columns of the table."""
    if name == SCIFACT:
        return {"scifact nDCG@10": measures["ndcg10"], "R@100": measures["recall100"]}
    return {f"{name} known@{cutoff}": value for cutoff, value in zip(CUTOFFS, measures.values(), strict=True)}


def default_figures(
    asked: QuestionSet, figures: Mapping[str, Any], config: RetrievalBenchConfig
) -> dict[str, float]:
    """Number of questions; known passages that the default method finds, without its name in their keys."""
    if asked.name == SCIFACT:
        return {"num_queries_scifact": len(asked.questions)}
    best = "bm25" if config.encoder is None else asked.settings.fusion
    shares = {key: figures[f"{key}_{best}"] for key in passage_keys(asked.name).values()}
    return {**shares, f"num_own_passage_{asked.name}": len(asked.questions)}


def measure_dense(sets: Sequence[QuestionSet], encoder: Encoder) -> dict[str, float]:
    """What first passes find of an exact search in each index, for all its questions; encoding speed."""
    questions: dict[Path, list[Question]] = {}
    for one in sets:
        questions.setdefault(one.settings.index, []).extend(one.questions)
    figures = measure_first_passes(questions, encoder)
    rate = encode_rate(sets[0].settings.index, encoder)
    print(f"encoding: {rate:.1f} chunks/s")
    return {**figures, "encode_chunks_per_s": rate}


def encode_rate(index: Path, encoder: Encoder) -> float:
    """Chunks a second that the encoder takes of an index's first, median of the rounds, after a short one."""
    chunks = islice(ChunkStore(index).read_shard(0), RATE_CHUNKS)
    texts = [searchable_text(chunk) for chunk in chunks]
    encoder.encode_passages(texts[:32])
    return len(texts) / median_seconds(lambda: encoder.encode_passages(texts), RATE_ROUNDS)


def describe(config: RetrievalBenchConfig) -> dict[str, Any]:
    """What the bench was asked to do, without this machine's folders."""
    return {
        "encoder": Path(config.encoder).name if config.encoder else None,
        "reranker": reranker_name(config),
        "keep": config.keep,
        "limit": config.limit,
    }
