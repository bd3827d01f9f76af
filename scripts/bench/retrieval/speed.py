"""`strata bench retrieval-speed`: how fast searching is at a million passages, and what building takes.

Parts: exact top-k against faiss, BM25 by tantivy and by bm25s, encoding, peak memory of a build. Corpora are
made of random words with Zipf's frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree
from typing import Any

from strata.retrieval.index.build import build_index
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.types import Searcher
from strata.scripts.bench.configs import RetrievalSpeedConfig
from strata.scripts.bench.process_memory import peak_resident_bytes
from strata.scripts.bench.record import (
    GIB,
    RESULTS,
    append_result,
    print_environment,
    print_table,
    run_parts,
)
from strata.scripts.bench.retrieval.top_k import run_top_k_part
from strata.scripts.bench.timing import median_seconds
from strata.scripts.bench.workloads.synthetic_passages import make_passages, make_queries, write_passages
from strata.scripts.index import require_packages

WHOLE_PASSAGE_CHARS = 1 << 20
TOP_K = 100
GROWTH = 10


def run_retrieval_speed_bench(config: RetrievalSpeedConfig) -> int:
    """Runs the parts asked for, prints tables and appends the figures. Returns the exit status."""
    print_environment()
    parts: dict[str, Callable[[RetrievalSpeedConfig], dict[str, Any]]] = {
        "topk": run_top_k_part,
        "bm25": measure_bm25,
        "encode": measure_encoding,
        "build": measure_build_memory,
    }
    config.folder.mkdir(parents=True, exist_ok=True)
    chosen: Sequence[str] = config.parts or tuple(parts)
    figures = run_parts(parts, chosen, config)
    asked = {
        "parts": list(chosen),
        "num_vectors": config.num_vectors,
        "num_passages": config.num_passages,
        "num_queries": config.num_queries,
        "build_passages": config.build_passages,
        "rounds": config.rounds,
        "encoder": Path(config.encoder).name if config.encoder else None,
    }
    append_result("retrieval_speed", {**figures, "config": asked}, RESULTS)
    return 0


def measure_bm25(config: RetrievalSpeedConfig) -> dict[str, float]:
    """Queries/s of both BM25 searchers over the same passages, each given all queries at once."""
    require_packages(("tantivy", "bm25s"))
    from strata.retrieval.searchers.bm25 import Bm25s, TantivyBm25

    index = index_passages(config.folder, config.num_passages)
    queries = make_queries(config.num_queries)
    store = ChunkStore(index.out)
    searchers: dict[str, Searcher] = {
        "tantivy": TantivyBm25(index.out),
        "bm25s": Bm25s(store, index.language),
    }
    rates = {name: queries_per_s(searcher, queries, config.rounds) for name, searcher in searchers.items()}
    print_table([{"BM25": name, "passages": len(store), "queries/s": rate} for name, rate in rates.items()])
    size = "1m" if config.num_passages == 1_000_000 else str(config.num_passages)
    return {f"{name}_q_per_s_{size}": rate for name, rate in rates.items()}


def queries_per_s(searcher: Searcher, queries: list[str], rounds: int) -> float:
    """Median over the rounds, after one to warm up."""
    searcher.search(queries, TOP_K)
    return len(queries) / median_seconds(lambda: searcher.search(queries, TOP_K), rounds)


def index_passages(folder: Path, num_passages: int) -> IndexConfig:
    """An index of so many passages, one chunk each; one that is there is kept."""
    corpus = write_passages(folder / f"passages-{num_passages}.jsonl", num_passages)
    index = IndexConfig(
        corpus=(corpus,), out=folder / f"index-{num_passages}", chunk_chars=WHOLE_PASSAGE_CHARS
    )
    build_index(index)
    return index


def measure_encoding(config: RetrievalSpeedConfig) -> dict[str, float]:
    """Passages/s of the encoder, median of the rounds; nothing without one."""
    if config.encoder is None:
        print("no --encoder: left out")
        return {}
    require_packages(("sentence_transformers",))
    from strata.retrieval.index.encoders import EncoderSettings, SentenceEncoder

    encoder = SentenceEncoder(EncoderSettings(model=config.encoder, device=config.device))
    passages = list(make_passages(config.encode_passages))
    encoder.encode_passages(passages[:64])
    rate = len(passages) / median_seconds(lambda: encoder.encode_passages(passages), config.rounds)
    print_table([{"encoder": encoder.name, "dimensions": encoder.dim, "passages/s": rate}])
    return {"encode_passages_per_s": rate}


def measure_build_memory(config: RetrievalSpeedConfig) -> dict[str, float]:
    """Peak resident GiB of processes that build an index of one size and of ten times that."""
    require_packages(("tantivy",))
    sizes = {"1x": config.build_passages, f"{GROWTH}x": GROWTH * config.build_passages}
    peaks = {name: build_alone(config.folder, size) for name, size in sizes.items()}
    print_table([{"build": name, "passages": sizes[name], "peak GiB": peak} for name, peak in peaks.items()])
    return {f"build_peak_gib_{name}": peak for name, peak in peaks.items()}


def build_alone(folder: Path, num_passages: int) -> float:
    """Builds in a fresh process, from nothing; returns its peak resident GiB."""
    write_passages(folder / f"passages-{num_passages}.jsonl", num_passages)
    if (folder / f"index-{num_passages}").exists():
        rmtree(folder / f"index-{num_passages}")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_build_and_look, folder, num_passages).result()


def _build_and_look(folder: Path, num_passages: int) -> float:
    index_passages(folder, num_passages)
    return peak_resident_bytes() / GIB
