"""An encoder for tests: words hashed into dimensions. Quick, repeatable, and similar for similar texts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np


class FakeEncoder:
    """Counts words in `dim` dimensions; `stop_after` passages it is interrupted, as by Ctrl-C."""

    def __init__(
        self,
        dim: int = 24,
        name: str = "fake",
        normalised: bool = True,
        seed: int = 0,
        stop_after: int | None = None,
    ) -> None:
        self.dim = dim
        self.name = name
        self.normalised = normalised
        self.seed = seed
        self.stop_after = stop_after
        self.num_passages = 0

    @property
    def description(self) -> dict[str, object]:
        return {"model": f"somewhere/{self.name}", "seed": self.seed}

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts)

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        self.num_passages += len(texts)
        if self.stop_after is not None and self.num_passages > self.stop_after:
            raise KeyboardInterrupt
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.split():
                code = zlib.crc32(f"{self.seed} {word}".encode())
                vector[code % self.dim] += 1.0 + code % 7 / 7
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1) if self.normalised else vectors
