"""Exact top-k over float16 shards on disk against faiss IndexFlatIP over float32 in RAM, by turns.

Both use all cores. What counts is the median of the rounds' ratios; faiss is left out where it is absent.
Memory is what the process holds beyond files that are mapped: the system may drop those at any time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from strata.retrieval.index.vector_shard import VectorShard
from strata.retrieval.searchers.scan import ScanSettings
from strata.retrieval.searchers.top_k import find_top_k
from strata.scripts.bench.configs import RetrievalSpeedConfig
from strata.scripts.bench.process_memory import AnonymousGrowth
from strata.scripts.bench.record import GIB, print_table
from strata.scripts.bench.timing import time_in_turns

DIM = 384
TOP_K = 10
SHARD_ROWS = 100_000
NORM_BOUND = 1.002


def run_top_k_part(config: RetrievalSpeedConfig) -> dict[str, Any]:
    """Seconds and queries/s of both, their ratio, peak memory, and the share of equal rows."""
    paths = write_vectors(config.folder / f"vectors-{config.num_vectors}", config.num_vectors)
    queries = unit_vectors(config.num_queries, seed=1)
    float32 = ScanSettings(fast_dtype="float32")
    runs: dict[str, Callable[[], np.ndarray]] = {
        "strata": lambda: find_top_k(queries, open_shards(paths), TOP_K).rows,
        "strata float32": lambda: find_top_k(queries, open_shards(paths), TOP_K, settings=float32).rows,
    }
    with AnonymousGrowth() as memory:
        expected = runs["strata"]()
    if importlib.util.find_spec("faiss"):
        runs["faiss IndexFlatIP"] = faiss_search(paths, queries)
    equal = {name: float((run() == expected).mean()) for name, run in runs.items()}
    seconds = time_in_turns(runs, config.rounds)
    print_table(
        [
            {
                "top-k": name,
                "seconds": median(times),
                "queries/s": len(queries) / median(times),
                "equal": equal[name],
            }
            for name, times in seconds.items()
        ]
    )
    figures: dict[str, Any] = {f"topk_s_{name.replace(' ', '_')}": times for name, times in seconds.items()}
    figures |= {"topk_peak_gib": memory.peak_bytes / GIB, "topk_shard_gib": SHARD_ROWS * DIM * 2 / GIB}
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
        codes = np.load(path, mmap_mode="c", allow_pickle=False)
        yield VectorShard(first_row=number * SHARD_ROWS, codes=codes, dim=DIM, max_norm=NORM_BOUND)


def faiss_search(paths: list[Path], queries: np.ndarray) -> Callable[[], np.ndarray]:
    """The search of a flat faiss index of the same values in float32, all cores."""
    import faiss
    import torch

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(DIM)
    for path in paths:
        index.add(np.load(path, allow_pickle=False).astype(np.float32))
    return lambda: index.search(queries, TOP_K)[1]
