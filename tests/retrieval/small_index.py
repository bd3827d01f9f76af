"""Small indexes for tests: random texts of few words, so that scores tie and terms repeat."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from strata.retrieval.index.build import build_index
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index_config import IndexConfig


def random_texts(count: int, seed: int = 0, num_words: int = 40, longest: int = 30) -> list[str]:
    """Texts of one sentence, drawn from `num_words` words; the last quarter repeats the first."""
    rng = random.Random(seed)
    vocabulary = [f"word{number}" for number in range(num_words)]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, longest))) for _ in range(count)]
    return texts[: count - count // 4] + texts[: count // 4]


def write_corpus(path: Path, texts: Sequence[str], title: str = "") -> Path:
    """A JSONL corpus with ids 0, 1, ...; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"_id": str(number), "title": title, "text": text} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def make_index(folder: Path, texts: Sequence[str], **settings: object) -> ChunkStore:
    """An index of the texts, one chunk each unless `chunk_chars` says otherwise."""
    corpus = write_corpus(folder / "corpus.jsonl", texts)
    config = IndexConfig(corpus=(corpus,), out=folder / "index", **{"chunk_chars": 1 << 20, **settings})
    build_index(config)
    return ChunkStore(config.out)
