"""The measures of `strata search`: what a first pass misses, and each method and stage against judgements."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from strata.engine.files import write_atomically
from strata.engine.types import Question
from strata.retrieval.evaluate import Evaluation, Qrels, evaluate_ranking, rank_pages, tabulate_per_query
from strata.retrieval.queries import build_queries
from strata.retrieval.refine.hits import load_hits
from strata.retrieval.search import SearchResult, SearchTools
from strata.retrieval.search_config import SearchConfig

NUM_RECALL_QUERIES = 32
"""Queries that a first pass is compared with an exact search on."""


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
    qrels: Qrels,
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
    qrels: Qrels,
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
    """Prints one line a method or stage, the measures as columns."""
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
