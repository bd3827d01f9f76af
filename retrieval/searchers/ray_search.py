"""Dense search of one index by all nodes of a Ray cluster, exactly as one machine does it.

Every node scans its share of the shards and sends back its best rows with their float64 scores; the caller
encodes the queries and joins what comes. Legend: Q queries, D dimensions, k top_k.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strata.engine.types import InputError
from strata.retrieval.index.encoders import Encoder
from strata.retrieval.index.vector_store import VectorStore
from strata.retrieval.searchers.dense import check_encoder
from strata.retrieval.searchers.running_top_k import merge_top_k
from strata.retrieval.searchers.top_k import find_top_k
from strata.retrieval.types import Ranking

MAX_RESTARTS = 2
"""How often a worker that died is started again, and what it was asked repeated."""

START_TIMEOUT_S = 300.0
"""A worker waits for its node's CPUs or GPUs to be free; then it imports torch."""

CONNECT_TIMEOUT_S = 10.0

LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, Ray listens on 127.0.0.1 alone, as it does by itself on macOS and Windows."""


class ShardWorker:
    """Searches some shards of an index on one node; runs as a Ray actor.

    Args:
        index: the index folder, as this node sees it.
        name: the encoder's folder name.
        numbers: its shards, ascending.
        devices: torch devices of this node.
    """

    def __init__(self, index: Path, name: str, numbers: Sequence[int], devices: Sequence[str]) -> None:
        self._place = (index, name)
        self._numbers = tuple(numbers)
        self._devices = tuple(devices)

    def open(self) -> int:
        """Looks at the index as its node sees it; returns how many shards it has of it."""
        VectorStore(*self._place, digests=False)
        return len(self._numbers)

    def find(self, queries_QD: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [Q, k] int64 and scores [Q, k] float64 of the best rows among its shards."""
        # Only the caller compares checksums: every node would have to read the whole index for it.
        vectors = VectorStore(*self._place, digests=False)
        best = find_top_k(queries_QD, vectors.open_shards(self._numbers), top_k, devices=self._devices)
        return best.rows, best.scores


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster: its id, CPU cores and GPUs."""

    id: str
    num_cpus: float
    num_gpus: int

    @property
    def devices(self) -> tuple[str, ...]:
        """All its GPUs, else its CPU."""
        return tuple(f"cuda:{number}" for number in range(self.num_gpus)) or ("cpu",)


class RayDenseIndex:
    """A `Searcher` whose shards are shared out over the nodes of a Ray cluster.

    Args:
        index: an index folder that every node sees at this path (a network file system, or copies).
        encoder: embeds the queries, here; has to be the one that made the vectors.
        address: of the cluster's head; `auto` for the one that this machine is in, `local` to start one here
            that listens on 127.0.0.1 alone and ends with `close`. A connection that this process has already
            is kept, and used.

    Raises:
        InputError: Ray is not installed, no cluster is at the address, or the vectors cannot be used.
        OSError: a node has nothing free to search with, or was lost.
    """

    def __init__(self, index: Path, encoder: Encoder, *, address: str = "auto") -> None:
        self.encoder = encoder
        self._vectors = VectorStore(index, encoder.name)
        check_encoder(self._vectors, encoder)
        self._workers: list[Any] = []
        self._connected_here = connect(address)
        try:
            self._start(index.resolve())
        except BaseException:
            self.close()
            raise

    def _start(self, index: Path) -> None:
        for node, numbers in share_out(range(self._vectors.num_shards), list_nodes()):
            self._workers.append(start_worker(node, index, self.encoder.name, numbers))
        collect([worker.open.remote() for worker in self._workers], timeout_s=START_TIMEOUT_S)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def num_workers(self) -> int:
        """Nodes that search."""
        return len(self._workers)

    def search(self, queries: Sequence[str], top_k: int) -> Ranking:
        """The `top_k` best rows of every query text; see `Searcher`."""
        return self.search_vectors(self.encoder.encode_queries(queries), top_k)

    def search_vectors(self, queries_QD: np.ndarray, top_k: int) -> Ranking:
        """The same for vectors: [Q, D] -> [Q, k], ordered by float64 score, ties by lower row.

        Raises:
            InputError: a shard cannot be read on its node.
            OSError: a node was lost, and its worker could not be started again.
        """
        import ray

        queries = ray.put(queries_QD)
        parts = collect([worker.find.remote(queries, top_k) for worker in self._workers])
        return merge_top_k(parts, len(queries_QD), top_k).ranking()

    def close(self) -> None:
        """Ends the workers, and the connection unless this process had it before; a cluster stays."""
        import ray

        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
        if self._connected_here:
            ray.shutdown()
            self._connected_here = False


def collect(asked: Sequence[Any], timeout_s: float | None = None) -> list[Any]:
    """Waits for what workers were asked.

    Raises:
        InputError: what a worker raised.
        OSError: a node was lost, or the time is over.
    """
    import ray

    try:
        return ray.get(list(asked), timeout=timeout_s)
    except InputError as error:
        # What Ray raises has the worker's traceback as its message.
        raise InputError(str(getattr(error, "cause", error))) from None
    except ray.exceptions.GetTimeoutError:
        raise OSError(
            f"--ray: not every node was ready in {timeout_s:g} s; expected all GPUs of each, or else all "
            "of its CPUs, to be free"
        ) from None
    except ray.exceptions.RayActorError as error:
        raise OSError(f"a node of the Ray cluster was lost ({one_line(error)})") from error


def connect(address: str) -> bool:
    """Joins a cluster, or starts one; returns whether it did, False where there is a connection already.

    Raises:
        InputError: Ray is not installed, or no cluster is at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ.setdefault(LOOPBACK_SWITCH, "0")
    try:
        import ray
    except ImportError:
        raise InputError(
            '--ray: needs Ray; expected an install with the extra: pip install "strata-score[ray]"'
        ) from None
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--ray: {address}: no cluster there ({one_line(error)}); expected HOST:PORT of the head of one "
            "that this machine is in, auto or local"
        ) from None
    return True


def check_reachable(address: str) -> None:
    """Raises OSError when nothing listens at HOST:PORT, where Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def one_line(error: Exception) -> str:
    """The beginning of an error's message."""
    return " ".join(str(error).split())[:200]


def list_nodes() -> list[Node]:
    """The cluster's living nodes that have a CPU or a GPU to compute with, in the order of their ids."""
    import ray

    nodes = [
        Node(
            id=node["NodeID"],
            num_cpus=float(node["Resources"].get("CPU", 0)),
            num_gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted((node for node in nodes if node.num_cpus or node.num_gpus), key=lambda node: node.id)


def share_out(numbers: Sequence[int], nodes: Sequence[Node]) -> list[tuple[Node, tuple[int, ...]]]:
    """Gives every n-th shard to a node; nodes for which there is none are left out.

    Raises:
        InputError: there are no nodes.
    """
    if not nodes:
        raise InputError("--ray: no node of the cluster has CPUs or GPUs; expected one at least")
    shares = [(node, tuple(numbers[place :: len(nodes)])) for place, node in enumerate(nodes)]
    return [(node, share) for node, share in shares if share]


def start_worker(node: Node, index: Path, name: str, numbers: Sequence[int]) -> Any:
    """Starts a worker on a node, with all of its GPUs or else all of its cores."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {"num_gpus": node.num_gpus} if node.num_gpus else {"num_cpus": node.num_cpus}
    actor = ray.remote(ShardWorker).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False),
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
        **options,
    )
    return actor.remote(index, name, numbers, node.devices)
