"""Exact top-k over float16 shards on disk against faiss IndexFlatIP over float32 in RAM, by turns.

Both use all cores. What counts is the median of the rounds' ratios; faiss is left out where it is absent.
Memory is what the process holds beyond files that are mapped: the system may drop those at any time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter
from typing import Any

import numpy as np

from strata.retrieval.index.vector_shard import VectorShard
from strata.retrieval.searchers.scan import ScanSettings
from strata.retrieval.searchers.top_k import find_top_k
from strata.scripts.bench.configs import RetrievalSpeedConfig
from strata.scripts.bench.process_memory import status_bytes
from strata.scripts.bench.record import GIB, print_table

DIM = 384
TOP_K = 10
SHARD_ROWS = 100_000
NORM_BOUND = 1.002
SAMPLE_S = 0.002


def run_top_k_part(config: RetrievalSpeedConfig) -> dict[str, Any]:
    """Seconds and queries/s of both, their ratio, peak memory, and the share of equal rows."""
    paths = write_vectors(config.folder / f"vectors-{config.num_vectors}", config.num_vectors)
    queries = unit_vectors(config.num_queries, seed=1)
    float32 = ScanSettings(fast_dtype="float32")
    runs: dict[str, Callable[[], np.ndarray]] = {
        "strata": lambda: find_top_k(queries, open_shards(paths), TOP_K).rows,
        "strata float32": lambda: find_top_k(queries, open_shards(paths), TOP_K, settings=float32).rows,
    }
    with PeakMemory() as memory:
        expected = runs["strata"]()
    if importlib.util.find_spec("faiss"):
        runs["faiss IndexFlatIP"] = faiss_search(paths, queries)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    equal = {name: float((run() == expected).mean()) for name, run in runs.items()}
    for _ in range(config.rounds):
        for name, run in runs.items():
            started = perf_counter()
            run()
            seconds[name].append(perf_counter() - started)
    print_table(
        [
            {
                "top-k": name,
                "seconds": median(own),
                "queries/s": len(queries) / median(own),
                "equal": equal[name],
            }
            for name, own in seconds.items()
        ]
    )
    figures: dict[str, Any] = {f"topk_s_{name.replace(' ', '_')}": own for name, own in seconds.items()}
    figures |= {"topk_peak_gib": memory.peak_gib, "topk_shard_gib": SHARD_ROWS * DIM * 2 / GIB}
    if "faiss IndexFlatIP" in runs:
        ratios = [b / a for a, b in zip(seconds["strata"], seconds["faiss IndexFlatIP"], strict=True)]
        figures |= {"topk_over_faiss": median(ratios), "topk_equal_to_faiss": equal["faiss IndexFlatIP"]}
    return figures


def unit_vectors(num_rows: int, seed: int) -> np.ndarray:
    """[rows, DIM] float32 of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((num_rows, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_vectors(folder: Path, num_rows: int) -> list[Path]:
    """Shards of random unit vectors in float16; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, num_rows, SHARD_ROWS)):
        path = folder / f"{number:05d}.npy"
        if not path.exists():
            partial = folder / "partial.npy"
            np.save(partial, unit_vectors(min(SHARD_ROWS, num_rows - start), number + 2).astype(np.float16))
            partial.replace(path)
        paths.append(path)
    return paths


def open_shards(paths: list[Path]) -> Iterator[VectorShard]:
    """Yields the shards, memory-mapped."""
    for number, path in enumerate(paths):
        codes = np.load(path, mmap_mode="c")
        yield VectorShard(first_row=number * SHARD_ROWS, codes=codes, dim=DIM, max_norm=NORM_BOUND)


def faiss_search(paths: list[Path], queries: np.ndarray) -> Callable[[], np.ndarray]:
    """The search of a flat faiss index of the same values in float32, all cores."""
    import faiss
    import torch

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(DIM)
    for path in paths:
        index.add(np.load(path).astype(np.float32))
    return lambda: index.search(queries, TOP_K)[1]


class PeakMemory:
    """Context manager: `peak_gib`, the most anonymous memory the process gained, sampled from a thread.

    Zero where the system does not tell (only Linux does).
    """

    def __init__(self) -> None:
        self.peak_gib = 0.0
        self._stop = Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._start_bytes = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.peak_gib = max(self.peak_gib, (anonymous_bytes() - self._start_bytes) / GIB)


def anonymous_bytes() -> int:
    """Resident bytes of this process that belong to no file."""
    return status_bytes("RssAnon")
