"""Passages for benches that have no corpus: words with Zipf's frequencies, the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

NUM_WORDS = 100_000
PASSAGE_WORDS = 70
"""About what a chunk of 512 characters holds."""

QUERY_WORDS = 25
"""About a question with its options, less the most frequent words."""

BLOCK = 10_000


def word_probabilities(first: int = 0) -> np.ndarray:
    """Frequencies of the words from rank `first` on, [words] float64, as Zipf's law with exponent 1."""
    weights = 1.0 / np.arange(first + 1, NUM_WORDS + 1)
    return weights / weights.sum()


def make_passages(num_passages: int, seed: int = 0) -> Iterator[str]:
    """Yields passages of random words; memory: a block of them."""
    random, probabilities = np.random.default_rng(seed), word_probabilities()
    for start in range(0, num_passages, BLOCK):
        size = (min(BLOCK, num_passages - start), PASSAGE_WORDS)
        for ranks in random.choice(NUM_WORDS, size=size, p=probabilities):
            yield " ".join(f"w{rank:x}" for rank in ranks)


def make_queries(num_queries: int, seed: int = 1) -> list[str]:
    """Queries of the same words, without the hundred most frequent (a list of stop words drops those)."""
    random, probabilities = np.random.default_rng(seed), word_probabilities(100)
    ranks = 100 + random.choice(NUM_WORDS - 100, size=(num_queries, QUERY_WORDS), p=probabilities)
    return [" ".join(f"w{rank:x}" for rank in query) for query in ranks]


def write_passages(path: Path, num_passages: int) -> Path:
    """A JSONL corpus of passages; one that is there is kept. Returns its path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("w", encoding="ascii") as file:
            for number, text in enumerate(make_passages(num_passages)):
                file.write(json.dumps({"_id": str(number), "text": text}) + "\n")
        partial.replace(path)
    return path
