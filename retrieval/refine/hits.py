"""Makes hits of a ranking, and ranks hits again by new scores. Knows nothing of indexes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from strata.retrieval.rankings import read_candidates
from strata.retrieval.types import Chunk, Hit, Ranking

ReadChunks = Callable[[Sequence[int]], Sequence[Chunk]]
"""The chunks at rows of an index, in the order asked for: `ChunkStore.chunks`."""


def load_hits(ranking: Ranking, read_chunks: ReadChunks, top_k: int | None = None) -> list[list[Hit]]:
    """Reads the chunks of a ranking.

    Args:
        ranking: [Q, k].
        read_chunks: the index's chunks by row.
        top_k: how many of the best places to read; None reads all.

    Returns:
        [Q] hits, best first; places that nothing takes are left out.
    """
    hits = []
    for query in range(len(ranking.rows)):
        rows, scores = (values[:top_k].tolist() for values in read_candidates(ranking, query))
        chunks = read_chunks(rows) if rows else []
        hits.append(
            [
                Hit(chunk=chunk, score=score, row=row)
                for chunk, score, row in zip(chunks, scores, rows, strict=True)
            ]
        )
    return hits


def rank_hits(
    hits: Sequence[Hit], scores: Sequence[float] | np.ndarray, top_k: int | None = None
) -> list[Hit]:
    """Gives the hits of one query new scores and sorts them, best first; ties keep the order they had.

    Raises:
        ValueError: not one score a hit.
        FloatingPointError: a score is NaN.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(hits),):
        raise ValueError(f"scores of shape {values.shape} for {len(hits)} hit(s); expected one each")
    if np.isnan(values).any():
        raise FloatingPointError(
            f"the new score of chunk {hits[int(np.isnan(values).argmax())].chunk.id} is NaN"
        )
    order = np.argsort(-values, kind="stable")[:top_k]
    return [replace(hits[place], score=float(values[place])) for place in order]
