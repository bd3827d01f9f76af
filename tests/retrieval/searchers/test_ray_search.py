"""Search over two local Ray nodes against one machine; skipped where Ray is not installed."""

from __future__ import annotations

import csv
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from strata.engine import ray_cluster
from strata.engine.ray_cluster import Node, list_nodes
from strata.engine.types import InputError
from strata.retrieval.index.encode import encode_index
from strata.retrieval.searchers.dense import DenseIndex
from strata.retrieval.searchers.ray_search import RayDenseIndex, share_out
from strata.scripts.cli import main

from ...ray_nodes import (
    LocalCluster,
    actors,
    assert_ended,
    assert_only_this_machine_is_listened_to,
    ray_on_loopback,
    two_nodes,
)
from ..fake_encoder import FakeEncoder
from ..small_index import make_index, random_texts

__all__ = ["ray_on_loopback", "two_nodes"]

QUERIES = ("word1 word2 word3", "word7", "", "word1 " * 2000)


def test_every_shard_goes_to_one_node() -> None:
    nodes = [Node(id=str(number), num_cpus=1, num_gpus=0) for number in range(3)]
    assert [share for _, share in share_out(range(7), nodes)] == [(0, 3, 6), (1, 4), (2, 5)]
    assert [(node.id, share) for node, share in share_out(range(2), nodes)] == [("0", (0,)), ("1", (1,))]
    with pytest.raises(InputError, match="no node"):
        share_out(range(2), [])


def test_a_nodes_gpus_come_before_its_cpu() -> None:
    assert Node(id="a", num_cpus=8, num_gpus=2).devices == ("cuda:0", "cuda:1")
    assert Node(id="a", num_cpus=8, num_gpus=0).devices == ("cpu",)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_index(tmp_path_factory.mktemp("ray"), random_texts(230), chunks_per_shard=50)
    encode_index(store.folder, FakeEncoder())
    return store.folder


def workers() -> list[psutil.Process]:
    """Processes of this one's clusters that hold or held a worker."""
    return actors("ShardWorker")


@pytest.mark.slow
def test_two_nodes_find_what_one_machine_finds(
    index: Path, two_nodes: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = DenseIndex(index, FakeEncoder())
    together = RayDenseIndex(index, FakeEncoder(), address=two_nodes.address)
    assert len(list_nodes()) == together.num_workers == len(workers()) == 2
    assert_only_this_machine_is_listened_to()
    monkeypatch.setattr(ray_cluster, "START_TIMEOUT_S", 0.5)
    with pytest.raises(OSError, match=r"not every node was ready in 0\.5 s; expected .* CPUs, to be free"):
        RayDenseIndex(index, FakeEncoder(), address=two_nodes.address)
    for top_k in (1, 40, 300):
        expected, found = alone.search(QUERIES, top_k), together.search(QUERIES, top_k)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)
    # Rows of both nodes that tie: every second shard is the other node's.
    ties = expected.rows[0][expected.scores[0] == expected.scores[0][0]]
    assert len({row // 50 % 2 for row in ties.tolist()}) == 2
    assert together.search([], 5).rows.shape == (0, 5)
    path = index / "dense" / "fake" / "00003.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(InputError, match=r"00003\.npy: \d+ bytes; expected \d+: it was cut short") as caught:
        together.search(QUERIES, 3)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    running = workers()
    together.close()
    assert_ended(running)


def write_questions(path: Path) -> Path:
    rows = "".join(f"q{number},{query[:500]},a,b\n" for number, query in enumerate(QUERIES) if query)
    path.write_text(f"id,prompt,A,B\n{rows}", encoding="utf-8")
    return path


@pytest.fixture
def run(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`strata search --method dense` with the encoder of the index, and more flags."""
    monkeypatch.setattr(
        "strata.retrieval.searchers.dense.load_index_encoder", lambda *place, device: FakeEncoder()
    )
    given = ["--index", index, "--questions", write_questions(tmp_path / "q.csv"), "--method", "dense"]
    given += ["--query", "prompt", "--devices", "cpu"]
    return lambda *flags: main(["search", *map(str, given), *map(str, flags)])


def contexts(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row["context"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_the_command_line_searches_with_the_cluster_and_ends_its_workers(
    run: Callable[..., int],
    tmp_path: Path,
    two_nodes: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray

    running: list[psutil.Process] = []
    search = RayDenseIndex.search

    def search_and_look(*arguments):
        running.extend(workers())
        return search(*arguments)

    monkeypatch.setattr(RayDenseIndex, "search", search_and_look)
    assert run("--out", tmp_path / "alone.csv") == 0
    assert not running
    assert run("--out", tmp_path / "together.csv", "--ray", two_nodes.address) == 0
    assert all(contexts(tmp_path / "alone.csv"))
    assert contexts(tmp_path / "together.csv") == contexts(tmp_path / "alone.csv")
    assert len(running) == 2
    assert not ray.is_initialized()
    assert_ended(running)

    def refuse(*arguments):
        running.extend(workers())
        raise InputError("too many words")

    running.clear()
    monkeypatch.setattr("strata.retrieval.searchers.tfidf.QuestionTfidf", refuse)
    assert run("--out", tmp_path / "none.csv", "--ray", two_nodes.address, "--method", "tfidf") == 2
    assert "too many words" in capsys.readouterr().err
    assert len(running) == 2
    assert not ray.is_initialized()
    assert_ended(running)


def test_no_cluster_at_the_address(index: Path, ray_on_loopback: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"--ray: {address}: no cluster there .*refused.*HOST:PORT"):
            RayDenseIndex(index, FakeEncoder(), address=address)
