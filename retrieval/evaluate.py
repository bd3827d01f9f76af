"""Measures rankings against relevance judgements (qrels): nDCG@10, MAP, Recall@100, a table a query.

The measures are ir-measures'. Knows nothing of how rankings are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.engine.files import read_utf8
from strata.engine.types import InputError
from strata.retrieval.types import Hit

Qrels = Mapping[str, Mapping[str, int]]
"""Relevance by query id and page id; above 0 is relevant."""

MEASURES = ("nDCG@10", "AP", "R@10", "R@100")
"""As ir-measures writes them; AP's mean is MAP."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`means` maps a measure to its mean over the judged queries, `per_query` a query id to its measures."""

    means: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Reads judgements: BEIR's three columns with a header, or TREC's four (query, 0, page, relevance).

    Raises:
        InputError: no such file, a line of other columns, a relevance that is no integer, or no line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for query, page, relevance in _parse_qrels(path, read_utf8(path).splitlines()):
        qrels.setdefault(query, {})[page] = relevance
    if not qrels:
        raise InputError(f"{path}: holds no judgement; expected lines of query, page and relevance")
    return qrels


def _parse_qrels(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells or (number == 1 and cells[0].lower() in ("query-id", "query_id", "qid")):
            continue
        if len(cells) not in (3, 4):
            raise InputError(f"{path}, line {number}: {len(cells)} columns; expected 3 (BEIR) or 4 (TREC)")
        try:
            yield cells[0], cells[-2], int(cells[-1])
        except ValueError:
            raise InputError(f"{path}, line {number}: relevance {cells[-1]!r}; expected an integer") from None


def rank_pages(hits: Sequence[Hit]) -> list[str]:
    """The page ids of hits, best first, each once: a page ranks where its best chunk does."""
    return list(dict.fromkeys(hit.chunk.page for hit in hits))


def evaluate_ranking(
    qrels: Qrels, rankings: Mapping[str, Sequence[str]], measures: Sequence[str] = MEASURES
) -> Evaluation:
    """Measures ranked pages.

    Source: trec_eval's measures through ir-measures (MacAvaney et al., "Streamlining evaluation with
    ir-measures", ECIR 2022).

    Args:
        qrels: the judgements. Every judged query counts; one without a ranking counts as 0.
        rankings: page ids by query id, best first, each once. Queries that nobody judged are left out.
        measures: names that ir-measures can parse.

    Raises:
        InputError: no query of the rankings is judged, so ids do not match.
    """
    import ir_measures

    if not any(query in qrels for query in rankings):
        raise InputError(
            f"none of {len(rankings)} query id(s), such as {next(iter(rankings), '')!r}, is in the qrels, "
            f"which has {next(iter(qrels), '')!r}; expected the ids to match"
        )
    wanted = [ir_measures.parse_measure(name) for name in measures]
    # Evaluators break ties by page id; descending places keep exactly the order that was given.
    run = {
        query: {page: float(len(pages) - place) for place, page in enumerate(pages)}
        for query, pages in rankings.items()
        if query in qrels
    }
    result: Any = ir_measures.calc(wanted, {query: dict(judged) for query, judged in qrels.items()}, run)
    per_query = {query: {str(measure): 0.0 for measure in wanted} for query in qrels}
    for metric in result.per_query:
        per_query[metric.query_id][str(metric.measure)] = float(metric.value)
    means = {str(measure): float(result.aggregated[measure]) for measure in wanted}
    return Evaluation(means=means, per_query=per_query)


def tabulate_per_query(evaluations: Mapping[str, Evaluation]) -> list[dict[str, object]]:
    """One row a query: its id and, for each method, each measure as `<method> <measure>`."""
    queries = next(iter(evaluations.values())).per_query if evaluations else {}
    return [
        {"query": query}
        | {
            f"{method} {measure}": value
            for method, evaluation in evaluations.items()
            for measure, value in evaluation.per_query[query].items()
        }
        for query in queries
    ]
