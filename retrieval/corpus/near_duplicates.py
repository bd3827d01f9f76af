"""Finds near-duplicate pages: MinHash signatures on disk, candidates by banding, a check of each candidate.

Source: Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", section 3.4. Signatures (520 bytes a page) lie in a file that an interrupted run
goes on with; memory is that of one slice of the keys of one band. Knows nothing of chunks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from datasketch import MinHash

from strata.retrieval.types import Page

NUM_PERMUTATIONS = 128
SHINGLE_WORDS = 5
MIN_FOUND = 0.99
"""A pair exactly at the threshold becomes a candidate with at least this probability."""

PAGES_PER_BLOCK = 10_000
KEYS_PER_SLICE = 4_000_000
WORD = re.compile(r"\w+")
RECORD = np.dtype([("text", "<u8"), ("signature", "<u4", (NUM_PERMUTATIONS,))])
SIGNATURES_FILE = "signatures.bin"


def find_near_duplicates(pages: Iterable[Page], threshold: float, folder: Path) -> np.ndarray:
    """Says which pages to drop: those similar to an earlier page that is kept.

    Similarity is the share of equal MinHash values (128 permutations; standard error at 0.9: 0.027) of the
    pages' sets of word 5-grams. Pages of equal words are always found. A page without words is never dropped.
    Within a band a page is compared with the bucket's first page only, so that a bucket of n costs n.

    Args:
        pages: the corpus; the same on every call that shares `folder`.
        threshold: least estimated Jaccard similarity, 0.5 to 1.
        folder: for the signatures; what an interrupted call left there is used.

    Returns:
        [pages] bool, True where a page is a near-duplicate.
    """
    path = folder / SIGNATURES_FILE
    num_pages = write_signatures(pages, path)
    if not num_pages:
        return np.zeros(0, dtype=bool)
    records = np.memmap(path, dtype=RECORD, mode="r", shape=(num_pages,))
    pairs = set(_similar_pairs(records, threshold))
    dropped = np.zeros(num_pages, dtype=bool)
    for earlier, later in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        dropped[later] |= not dropped[earlier]
    return dropped


def write_signatures(pages: Iterable[Page], path: Path) -> int:
    """Appends the signatures of the pages that the file does not hold yet; returns the number of pages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    num_done = path.stat().st_size // RECORD.itemsize if path.exists() else 0
    rest = islice(iter(pages), num_done, None)
    with path.open("ab") as file:
        file.truncate(num_done * RECORD.itemsize)
        while block := [sign_page(page) for page in islice(rest, PAGES_PER_BLOCK)]:
            np.array(block, dtype=RECORD).tofile(file)
            file.flush()
            num_done += len(block)
    return num_done


def sign_page(page: Page) -> tuple[int, np.ndarray]:
    """A hash of the page's words (0 without any), and the MinHash [128] uint32 of its word 5-grams."""
    words = WORD.findall(page.text.lower())
    minhash = MinHash(num_perm=NUM_PERMUTATIONS)
    minhash.update_batch(shingles(words))
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") | 1 if words else 0), minhash.hashvalues


def shingles(words: list[str]) -> list[bytes]:
    """The distinct runs of five words, in order of first appearance; of fewer words, all as one."""
    last = max(len(words) - SHINGLE_WORDS, 0)
    runs = (" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last + 1))
    return [run.encode() for run in dict.fromkeys(runs)]


def rows_per_band(threshold: float) -> int:
    """The largest power of two of signature rows a band that still finds a pair at the threshold.

    With r rows in each of 128 / r bands, a pair of similarity s becomes a candidate with probability
    1 - (1 - s^r)^(128 / r).
    """
    num_rows = NUM_PERMUTATIONS
    while num_rows > 1 and 1 - (1 - threshold**num_rows) ** (NUM_PERMUTATIONS / num_rows) < MIN_FOUND:
        num_rows //= 2
    return num_rows


def _similar_pairs(records: np.ndarray, threshold: float) -> Iterator[tuple[int, int]]:
    """Yields (earlier, later) page numbers; the pages of equal words, then what the bands suggest."""
    yield from ((a, b) for a, b in _bucket_pairs(records["text"]) if records["text"][b] != 0)
    num_rows = rows_per_band(threshold)
    for start in range(0, NUM_PERMUTATIONS, num_rows):
        keys = records["signature"][:, start : start + num_rows]
        for earlier, later in _bucket_pairs(keys):
            first, second = records[earlier], records[later]
            similarity = np.mean(first["signature"] == second["signature"])
            if similarity >= threshold and first["text"] and second["text"]:
                yield earlier, later


def _bucket_pairs(keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields (first, other) for every bucket of equal keys [pages] or [pages, rows].

    Keys are hashed to 64 bits and looked at in slices of the hash range, so that sorting takes the memory of
    KEYS_PER_SLICE keys whatever the number of pages.
    """
    num_slices = -(-len(keys) // KEYS_PER_SLICE)
    for number in range(num_slices):
        pages, hashes = _slice_of(keys, number, num_slices)
        order = np.argsort(hashes, kind="stable")
        pages, hashes = pages[order], hashes[order]
        is_first = np.ones(len(pages), dtype=bool)
        is_first[1:] = hashes[1:] != hashes[:-1]
        firsts = pages[np.maximum.accumulate(np.where(is_first, np.arange(len(pages)), 0))]
        yield from zip(firsts[~is_first].tolist(), pages[~is_first].tolist(), strict=True)


def _slice_of(keys: np.ndarray, number: int, num_slices: int) -> tuple[np.ndarray, np.ndarray]:
    """The pages (ascending) whose key's hash falls into one slice, and those hashes."""
    pages, hashes = [], []
    for start in range(0, len(keys), KEYS_PER_SLICE):
        block = hash_rows(keys[start : start + KEYS_PER_SLICE])
        chosen = np.flatnonzero(block % np.uint64(num_slices) == number)
        pages.append(chosen + start)
        hashes.append(block[chosen])
    return np.concatenate(pages), np.concatenate(hashes)


def hash_rows(keys: np.ndarray) -> np.ndarray:
    """One uint64 a row of keys, [n] or [n, rows]: a polynomial in an odd base, then the splitmix64 mixer.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    columns = keys[:, None] if keys.ndim == 1 else keys
    hashes = np.zeros(len(keys), dtype=np.uint64)
    for column in range(columns.shape[1]):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + columns[:, column].astype(np.uint64)
        hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashes ^= hashes >> np.uint64(31)
    return hashes
