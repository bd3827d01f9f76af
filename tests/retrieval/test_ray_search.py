"""Search over two local Ray nodes against one machine; skipped where Ray is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import InputError
from strata.retrieval.dense import DenseIndex
from strata.retrieval.encode import encode_index
from strata.retrieval.ray_search import Node, RayDenseIndex, list_nodes, share_out

from .fake_encoder import FakeEncoder
from .small_index import make_index, random_texts

QUERIES = ("word1 word2 word3", "word7", "", "word1 " * 2000)


def test_every_shard_goes_to_one_node() -> None:
    nodes = [Node(id=str(number), num_cpus=1, num_gpus=0) for number in range(3)]
    assert [own for _, own in share_out(range(7), nodes)] == [(0, 3, 6), (1, 4), (2, 5)]
    assert [(node.id, own) for node, own in share_out(range(2), nodes)] == [("0", (0,)), ("1", (1,))]
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


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Address of a cluster of two nodes on this machine, of one CPU each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_two_nodes_find_what_one_machine_finds(index: Path, two_nodes: str) -> None:
    alone = DenseIndex(index, FakeEncoder())
    together = RayDenseIndex(index, FakeEncoder(), address=two_nodes)
    assert len(list_nodes()) == together.num_workers == 2
    for top_k in (1, 40, 300):
        expected, found = alone.search(QUERIES, top_k), together.search(QUERIES, top_k)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)
    assert together.search([], 5).rows.shape == (0, 5)
    path = index / "dense" / "fake" / "00003.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(InputError, match=r"00003\.npy: \d+ bytes; expected \d+: it was cut short") as caught:
        together.search(QUERIES, 3)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    together.close()


def test_no_cluster_at_the_address(index: Path) -> None:
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(InputError, match=r"--ray: nowhere: no cluster there"):
        RayDenseIndex(index, FakeEncoder(), address="nowhere")
