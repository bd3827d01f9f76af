"""Settings of a search: what means nothing is refused, naming the flag."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.retrieval.search_config import SearchConfig

GOOD = {"index": Path("index"), "questions": Path("q.csv"), "out": Path("out.csv")}


def test_bm25_is_the_default_and_needs_no_encoder() -> None:
    config = SearchConfig(**GOOD)
    config.check()
    assert config.methods == ("bm25",)
    assert not config.needs_encoder


@pytest.mark.parametrize(
    "settings",
    [{"method": ("bm25", "dense")}, {"order": "embedding"}, {"pages": 2, "sentences": "embedding"}],
)
def test_what_needs_an_encoder(settings: dict) -> None:
    assert SearchConfig(**GOOD | settings).needs_encoder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": None}, "--out: missing"),
        ({"out": Path("out.txt")}, "--out: out.txt"),
        ({"keep": 0}, "--keep: 0"),
        ({"pages": -1}, "--pages: -1"),
        ({"context_chunks": 0}, "--context-chunks: 0"),
        ({"method": ("bm25", "bm25")}, "each method once"),
        ({"weight": (1.0, 2.0)}, "--weight: 2 given for 1"),
        ({"weight": (-1.0,)}, "--weight: -1.0"),
        ({"per_query": Path("x.csv")}, "--per-query"),
        ({"member": Path("m"), "cross_encoder": Path("c")}, "both rerank"),
        ({"member_template": "t"}, "need --member"),
        ({"first_pass": "int8"}, "--first-pass: needs --method dense"),
        ({"context_column": " "}, "--context-column"),
        ({"ray": "auto"}, "--ray: needs --method dense"),
        ({"ray": "auto", "method": ("dense",), "first_pass": "int8"}, "--ray and --first-pass"),
        ({"ray": "here", "method": ("dense",)}, "--ray: 'here'; expected auto, local or HOST:PORT"),
        ({"ray": "ray://head:10001", "method": ("dense",)}, "--ray: 'ray://head:10001'"),
    ],
)
def test_what_means_nothing_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchConfig(**GOOD | settings).check()


@pytest.mark.parametrize("address", ["auto", "local", "head:6379", "10.0.0.1:6379", "[fe80::1]:6379"])
def test_addresses_of_a_cluster(address: str) -> None:
    SearchConfig(**GOOD | {"ray": address, "method": ("dense",)}).check()


def test_measuring_needs_no_out() -> None:
    SearchConfig(**GOOD | {"out": None, "qrels": Path("qrels.tsv")}).check()
