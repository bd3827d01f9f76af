"""Evaluation: measures by hand, judged queries that found nothing, qrels files of both kinds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.retrieval.evaluate import evaluate_ranking, rank_pages, read_qrels, tabulate_per_query
from strata.retrieval.types import Chunk, Hit


def test_measures_by_hand() -> None:
    qrels = {"q": {"a": 1, "b": 1, "z": 0}, "r": {"c": 1}}
    evaluation = evaluate_ranking(qrels, {"q": ["z", "a", "x", "b"], "r": ["c"], "unjudged": ["a"]})
    ndcg = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert evaluation.per_query["q"] == pytest.approx(
        {"nDCG@10": ndcg, "AP": (1 / 2 + 2 / 4) / 2, "R@10": 1.0, "R@100": 1.0}
    )
    assert evaluation.means["nDCG@10"] == pytest.approx((ndcg + 1) / 2)
    assert set(evaluation.per_query) == {"q", "r"}


def test_a_judged_query_without_a_ranking_counts_as_zero() -> None:
    evaluation = evaluate_ranking({"q": {"a": 1}, "r": {"c": 1}, "s": {"d": 1}}, {"q": ["a"], "r": []})
    assert evaluation.means["AP"] == pytest.approx(1 / 3)
    assert evaluation.per_query["s"]["nDCG@10"] == 0.0


def test_the_given_order_counts_not_the_page_ids() -> None:
    pages = [f"p{number:03d}" for number in range(20)]
    first = evaluate_ranking({"q": {"p000": 1}}, {"q": pages})
    last = evaluate_ranking({"q": {"p000": 1}}, {"q": pages[::-1]})
    assert (first.means["AP"], last.means["AP"]) == (1.0, pytest.approx(1 / 20))


def test_ids_that_do_not_match_are_refused() -> None:
    with pytest.raises(InputError, match=r"'q1'.*'1'"):
        evaluate_ranking({"1": {"a": 1}}, {"q1": ["a"]})


def test_a_page_ranks_where_its_best_chunk_does() -> None:
    hits = [
        Hit(chunk=Chunk(id=f"{page}#{n}", page=page, title="", section="", text=""), score=-n, row=n)
        for n, page in enumerate(["b", "a", "b", "c", "a"])
    ]
    assert rank_pages(hits) == ["b", "a", "c"]


@pytest.mark.parametrize(
    "text",
    ["query-id\tcorpus-id\tscore\n1\td1\t1\n1\td2\t0\n", "1 0 d1 1\n1 0 d2 0\n", "\ufeff1\td1\t1\n1\td2\t0"],
)
def test_qrels_of_beir_and_trec(tmp_path: Path, text: str) -> None:
    path = tmp_path / "qrels.tsv"
    path.write_text(text, encoding="utf-8")
    assert read_qrels(path) == {"1": {"d1": 1, "d2": 0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no judgement"),
        ("1\td1\n", "line 1: 2 columns"),
        ("1\td1\t1\n2\td1\tyes\n", "line 2: relevance 'yes'"),
    ],
)
def test_broken_qrels_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "qrels.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        read_qrels(path)
    assert str(path) in str(error.value)


def test_a_missing_qrels_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_qrels(tmp_path / "none.tsv")


def test_table_has_a_row_a_query_and_a_column_a_method_and_measure() -> None:
    qrels = {"q": {"a": 1}, "r": {"b": 1}}
    one = evaluate_ranking(qrels, {"q": ["a"]}, ["AP"])
    two = evaluate_ranking(qrels, {"r": ["x", "b"]}, ["AP"])
    assert tabulate_per_query({"bm25": one, "rrf": two}) == [
        {"query": "q", "bm25 AP": 1.0, "rrf AP": 0.0},
        {"query": "r", "bm25 AP": 0.0, "rrf AP": 0.5},
    ]
    assert tabulate_per_query({}) == []
