"""Exact top-k inner products over shards of vectors, on one or several devices. Knows no text, no encoder.

Every device scans whole shards (`scan` says how, and why the result is exact) and keeps the best rows of
those; they are joined at the end. Legend: Q queries, D dimensions, k top_k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import numpy as np
import torch

from strata.retrieval.index.vector_shard import VectorShard
from strata.retrieval.searchers.running_top_k import RunningTopK, merge_top_k
from strata.retrieval.searchers.scan import MAX_QUERY_VALUE, DeviceScan, ScanSettings

T = TypeVar("T")


def find_top_k(
    queries_QD: np.ndarray,
    shards: Iterable[VectorShard],
    top_k: int,
    *,
    devices: Sequence[str] = ("cpu",),
    settings: ScanSettings | None = None,
) -> RunningTopK:
    """Finds the rows with the largest inner products.

    Every shard is scanned once; each device takes the next shard when it is done with its last.

    Peak memory: the shards that are open, one a device (memory-mapped ones cost what the system caches), and
    per device a tile of at most MAX_TILE_SCORES scores and its rows.

    Args:
        queries_QD: [Q, D], taken as float32; finite.
        shards: in ascending order of rows, no row twice; drawn when a device is free.
        top_k: places a query.
        devices: torch devices; one named twice gets two threads.
        settings: how a device scans; the usual way by default.

    Returns:
        The best rows [Q, k] by float64 score, ties by lower row; `ranking` rounds the scores to float32.

    Raises:
        ValueError: top_k below 1, queries that are no finite matrix, or a shard of another dimension.
        FloatingPointError: a stored vector is not finite.
    """
    queries_QD = check_queries(queries_QD)
    source = OrderedSource(shards)

    def scan_shards(device: str) -> tuple[np.ndarray, np.ndarray]:
        scan = DeviceScan.start(queries_QD, top_k, torch.device(device), settings or ScanSettings())
        for shard in source:
            scan.take_shard(shard)
            # Let go before the next one is opened.
            del shard
        scan.best.merge()
        return scan.best.rows, scan.best.scores

    if len(devices) == 1:
        parts = [scan_shards(devices[0])]
    else:
        with ThreadPoolExecutor(len(devices)) as pool:
            parts = list(pool.map(scan_shards, devices))
    return merge_top_k(parts, len(queries_QD), top_k)


def check_queries(queries_QD: np.ndarray) -> np.ndarray:
    """Queries as a contiguous float32 matrix; raises ValueError when they are none or not finite."""
    queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
    if queries_QD.ndim != 2:
        raise ValueError(f"queries have shape {queries_QD.shape}; expected [queries, dimensions]")
    # Written so that NaN fails too; scores of larger queries could overflow float32.
    if not (np.abs(queries_QD) <= MAX_QUERY_VALUE).all():
        raise ValueError(f"a query vector holds NaN or values beyond {MAX_QUERY_VALUE:g}; expected numbers")
    return queries_QD


class OrderedSource(Iterator[T]):
    """Hands the items of an iterable to several threads, in order, each item once."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._lock = Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)
