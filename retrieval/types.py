"""The objects that retrieval's stages hand to one another. Knows nothing of files, encoders or engines.

Legend of shape suffixes used across retrieval: Q queries, k places of a ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

NO_ROW = -1
"""The row in a place of a ranking that nothing takes; its score is minus infinity."""

ReportCount = Callable[[int], object]
"""Told, every now and then, how many of its items a stage is done with."""

Encode = Callable[[Sequence[str]], np.ndarray]
"""Embeds n texts: vectors [n, D] float32."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One document of a corpus.

    `sections` are (heading, text) pairs in reading order; when there are none, `text` is the whole document.
    """

    id: str
    title: str
    text: str
    sections: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A run of sentences of one section of one page: the unit that is indexed and put into a context.

    `id` is the page's id, "#" and the chunk's number within the page, from zero. `section` is the heading,
    empty where the page has none.
    """

    id: str
    page: str
    title: str
    section: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A chunk found for a query, its score, and the row of the index it comes from."""

    chunk: Chunk
    score: float
    row: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """The best rows for each of Q queries, best first.

    `rows` [Q, k] int64 are global positions in the index, `scores` [Q, k] float32 are descending. A place
    that nothing takes has row -1 and score minus infinity. Of two rows with one score, the lower comes first.
    """

    rows: np.ndarray
    scores: np.ndarray


class Searcher(Protocol):
    """Anything that ranks an index's rows for queries."""

    def search(self, queries: Sequence[str], top_k: int) -> Ranking:
        """Returns the `top_k` best rows of every query, best first."""
        ...
