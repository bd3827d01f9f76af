"""Dense search of one index by all nodes of a Ray cluster, exactly as one machine does it.

Every node scans its share of the shards and sends back its best rows with their float64 scores; the caller
encodes the queries and joins what comes. Legend: Q queries, D dimensions, k top_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from strata.engine import ray_cluster
from strata.engine.ray_cluster import Node, check_nodes, collect, connect, disconnect, list_nodes, start_actor
from strata.retrieval.index.encoders import Encoder
from strata.retrieval.index.vector_store import VectorStore
from strata.retrieval.searchers.dense import check_encoder
from strata.retrieval.searchers.running_top_k import merge_top_k
from strata.retrieval.searchers.top_k import find_top_k
from strata.retrieval.types import Ranking


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
            place = (index, self.encoder.name, numbers, node.devices)
            self._workers.append(start_actor(ShardWorker, node, *place))
        asked = [worker.open.remote() for worker in self._workers]
        collect(asked, timeout_s=ray_cluster.START_TIMEOUT_S)

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
        disconnect(self._workers, connected_here=self._connected_here)
        self._workers, self._connected_here = [], False


def share_out(numbers: Sequence[int], nodes: Sequence[Node]) -> list[tuple[Node, tuple[int, ...]]]:
    """Gives every n-th shard to a node; nodes for which there is none are left out.

    Raises:
        InputError: there are no nodes.
    """
    check_nodes(nodes)
    shares = [(node, tuple(numbers[place :: len(nodes)])) for place, node in enumerate(nodes)]
    return [(node, share) for node, share in shares if share]
