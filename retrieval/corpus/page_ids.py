"""Notices page ids that a corpus has twice, in 8 bytes a page. Knows nothing of files."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np

from strata.engine.types import InputError
from strata.retrieval.types import Page

BATCH_IDS = 1 << 20
"""Ids that are compared with the earlier ones together."""

PlacedPages = Iterable[tuple[str, Page]]
"""Pages with the places they are at, such as file and line."""


def refuse_repeats(
    pages: Iterable[Page], reread: Callable[[], PlacedPages], batch_ids: int = BATCH_IDS
) -> Iterator[Page]:
    """Yields pages as long as no id comes twice; a repeated one is noticed at the end of its batch.

    Memory: 8 bytes a page, and some 30 MiB for a batch.

    Args:
        pages: of the whole corpus, in order.
        reread: gives the same pages again with their places; called when two ids have one hash.
        batch_ids: how many ids are compared at a time.

    Raises:
        InputError: naming the id and the first two places of it.
    """
    seen = SeenHashes(batch_ids)
    for page in pages:
        if suspects := seen.add(hash_id(page.id)):
            refuse_repeated(reread(), suspects)
        yield page
    if suspects := seen.compare():
        refuse_repeated(reread(), suspects)


def hash_id(id: str) -> int:
    """64 bits of an id; among 6 million, two of one hash are a matter of one corpus in a million."""
    digest = hashlib.blake2b(id.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class SeenHashes:
    """The hashes of all ids so far, in sorted batches of `batch_ids`."""

    def __init__(self, batch_ids: int) -> None:
        self._batch_ids = batch_ids
        self._waiting = array("Q")
        self._batches: list[np.ndarray] = []

    def add(self, hash: int) -> set[int]:
        """Takes a hash; returns what `compare` does when that fills a batch."""
        self._waiting.append(hash)
        return self.compare() if len(self._waiting) == self._batch_ids else set()

    def compare(self) -> set[int]:
        """Compares the waiting hashes with one another and all earlier ones; returns those seen twice."""
        new = np.sort(np.array(self._waiting, dtype=np.uint64))
        repeated = [new[1:][new[1:] == new[:-1]]]
        for batch in self._batches:
            places = np.minimum(np.searchsorted(batch, new), len(batch) - 1)
            repeated.append(new[batch[places] == new])
        self._batches.append(new)
        self._waiting = array("Q")
        return set(np.concatenate(repeated).tolist())


def refuse_repeated(pages: PlacedPages, suspects: Collection[int]) -> None:
    """Raises InputError at the first id that comes again, of those with a suspect hash; none may."""
    places: dict[str, str] = {}
    for place, page in pages:
        if hash_id(page.id) not in suspects:
            continue
        if page.id in places:
            raise InputError(
                f"{place}: the page's id {page.id!r} is that of {places[page.id]} too; expected each id once"
            )
        places[page.id] = place
