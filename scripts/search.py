"""`strata search`: finds contexts for questions, measures rankings, prints what came out."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from strata.engine.files import write_atomically
from strata.engine.progress import progress_bar
from strata.engine.questions.question_file import read_questions
from strata.engine.questions.records import read_records
from strata.engine.types import InputError, Question, RunWarnings
from strata.retrieval.evaluate import Evaluation, evaluate_ranking, rank_pages, read_qrels, tabulate_per_query
from strata.retrieval.open_index import open_tools
from strata.retrieval.queries import build_queries
from strata.retrieval.refine.hits import load_hits
from strata.retrieval.search import SearchResult, SearchTools, num_stages, search
from strata.retrieval.search_config import SearchConfig
from strata.scripts.index import require_packages
from strata.scripts.search_contexts import build_contexts, token_counter, write_contexts

if TYPE_CHECKING:
    from strata.scripts.rerank_member import MemberScorer

NUM_RECALL_QUERIES = 32
"""Queries that a first pass is compared with an exact search on."""


def run_search(config: SearchConfig) -> int:
    """Searches, writes contexts, measures. Returns the exit status."""
    config.check()
    require_packages(packages_for(config))
    started = perf_counter()
    warnings = RunWarnings()
    questions = read_asked(config, warnings)
    qrels = None if config.qrels is None else read_qrels(config.qrels)
    count_tokens = None if config.out is None else token_counter(config.tokenizer, warnings)
    member = member_scorer(config)
    record: dict[str, Any] = {"config": asdict(config), "num_questions": len(questions)}
    with closing(open_tools(config, member)) as tools:
        with progress_bar("search", num_stages(config), shown=config.progress) as advance:
            result = search(questions, config, tools, advance)
        for message in member.warnings if member else ():
            warnings.say(f"--member: {message}")
        if config.first_pass is not None:
            record["first_pass_recall"] = measure_first_pass(questions, config, tools)
        if qrels is not None:
            record["metrics"] = measure_stages(qrels, questions, result, config, tools)
        if config.out is not None and count_tokens is not None:
            contexts = build_contexts(questions, result, config, tools, count_tokens)
            record["contexts"] = write_contexts(config, questions, contexts, warnings)
    record |= {"seconds": perf_counter() - started, "warnings": warnings.lines()}
    if config.out is not None:
        _write_record(config.out, record)
    for line in warnings.lines():
        print(f"warning: {line}", file=sys.stderr)
    return 0


def packages_for(config: SearchConfig) -> tuple[str, ...]:
    """Packages of the extra `retrieval` that a search with these settings imports."""
    needed = {
        "tantivy": True,
        "bm25s": "bm25s" in config.methods or config.pages > 0,
        "sklearn": "tfidf" in config.methods,
        "rapidfuzz": config.order == "edit-distance",
        "sentence_transformers": config.needs_encoder or config.cross_encoder is not None,
        "ir_measures": config.qrels is not None,
    }
    return tuple(name for name, is_needed in needed.items() if is_needed)


def read_asked(config: SearchConfig, warnings: RunWarnings) -> list[Question]:
    """The questions, whose contexts do not matter; BEIR queries are questions without options.

    Raises:
        InputError: what cannot be read, or BEIR queries where contexts are to be written.
    """
    if config.questions.suffix.lower() == ".jsonl":
        table = read_records(config.questions, limit=config.limit)
        if "_id" in table.columns and "id" not in table.columns:
            if config.out is not None:
                raise InputError(f"{config.questions}: holds queries; --out expects questions with options")
            return [
                Question(id=str(query.values["_id"]), prompt=str(query.values.get("text") or ""), options=())
                for query in table.records
            ]
    found = RunWarnings()
    questions = read_questions(config.questions, limit=config.limit, warnings=found)
    for kind, ids in found.rows.items():
        if kind in ("empty question", "empty option"):
            warnings.rows[kind] = ids
    return questions


def member_scorer(config: SearchConfig) -> MemberScorer | None:
    """The reranker that is a strata member, if wanted."""
    if config.member is None:
        return None
    from strata.scripts.rerank_member import MemberScorer

    return MemberScorer(
        config.member,
        adapter=config.member_adapter,
        template=config.member_template,
        memory_gib=config.memory_gib,
        devices=config.devices,
        progress=config.progress,
    )


def measure_first_pass(questions: Sequence[Question], config: SearchConfig, tools: SearchTools) -> float:
    """Share of what an exact search finds that the first pass found too, on the first queries; printed."""
    from strata.retrieval.searchers.dense import DenseIndex, measure_recall

    dense = tools.searchers["dense"]
    assert isinstance(dense, DenseIndex)
    exact = DenseIndex(config.index, dense.encoder, devices=dense.devices)
    texts = [text for text in build_queries(questions, config.query).texts if text][:NUM_RECALL_QUERIES]
    found = dense.search(texts, config.candidates)
    recall = measure_recall(found, exact.search(texts, config.candidates))
    where = f"recall@{config.candidates} of the {config.first_pass} first pass"
    print(f"{where}: {recall:.4f} ({len(texts)} queries)")
    return recall


def measure_stages(
    qrels: Mapping[str, Mapping[str, int]],
    questions: Sequence[Question],
    result: SearchResult,
    config: SearchConfig,
    tools: SearchTools,
) -> dict[str, dict[str, float]]:
    """Prints the measures, writes those of every query if wanted; returns the means by method and stage."""
    evaluations = evaluate_stages(qrels, questions, result, tools)
    print_evaluations(evaluations)
    if config.per_query is not None:
        write_per_query(config.per_query, tabulate_per_query(evaluations))
    return {method: dict(evaluation.means) for method, evaluation in evaluations.items()}


def evaluate_stages(
    qrels: Mapping[str, Mapping[str, int]],
    questions: Sequence[Question],
    result: SearchResult,
    tools: SearchTools,
) -> dict[str, Evaluation]:
    """Measures of every method, of the fusion, and of each later stage but the order of contexts."""
    ids = [question.id for question in questions]
    evaluations = {}
    for method, ranking in result.rankings.items():
        pages = [rank_pages(hits) for hits in load_hits(ranking, tools.read_chunks)]
        evaluations[method] = evaluate_ranking(qrels, dict(zip(ids, pages, strict=True)))
    for stage in ("sentences", "reranked"):
        if stage in result.stages:
            pages = [rank_pages(hits) for hits in result.stages[stage]]
            evaluations[stage] = evaluate_ranking(qrels, dict(zip(ids, pages, strict=True)))
    return evaluations


def print_evaluations(evaluations: Mapping[str, Evaluation]) -> None:
    """One line a method or stage, the measures as columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("method", box=box.ASCII)
    for measure in next(iter(evaluations.values())).means:
        table.add_column("MAP" if measure == "AP" else measure, justify="right")
    for method, evaluation in evaluations.items():
        table.add_row(method, *(f"{value:.4f}" for value in evaluation.means.values()))
    num_queries = len(next(iter(evaluations.values())).per_query)
    Console(highlight=False).print(table, f"{num_queries} judged queries", sep="\n")


def write_per_query(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes the table of measures of every query as CSV."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)
    print(f"{path}: {len(rows)} queries")


def _write_record(out: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record, indent=1, default=str, ensure_ascii=False) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", newline="\n")

    write_atomically(out.with_suffix(".search.json"), write)
