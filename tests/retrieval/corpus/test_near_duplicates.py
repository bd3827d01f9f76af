"""Near-duplicates: found by similarity, the first kept, the same after an interruption."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from strata.retrieval.corpus import near_duplicates
from strata.retrieval.corpus.near_duplicates import (
    MIN_FOUND,
    NUM_PERMUTATIONS,
    RECORD,
    SIGNATURES_FILE,
    find_near_duplicates,
    hash_rows,
    rows_per_band,
    shingles,
    sign_page,
)
from strata.retrieval.types import Page


def random_words(seed: int, count: int = 300) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def page(words: list[str], id: str = "p") -> Page:
    return Page(id=id, title="", text=" ".join(words))


def changed(words: list[str], places: list[int]) -> list[str]:
    return [f"new{place}" if place in places else word for place, word in enumerate(words)]


def jaccard(first: list[str], second: list[str]) -> float:
    one, two = set(shingles(first)), set(shingles(second))
    return len(one & two) / len(one | two)


def test_estimate_is_near_the_jaccard_similarity() -> None:
    words = random_words(0)
    other = changed(words, [50, 150])
    estimate = np.mean(sign_page(page(words))[1] == sign_page(page(other))[1])
    # Four standard errors of a binomial of 128.
    true = jaccard(words, other)
    assert abs(estimate - true) < 4 * np.sqrt(true * (1 - true) / NUM_PERMUTATIONS)


def test_drops_what_resembles_an_earlier_page_and_nothing_else(tmp_path: Path) -> None:
    base = random_words(1)
    near, far = changed(base, [150]), changed(base, list(range(0, 300, 12)))
    assert jaccard(base, near) > 0.95
    assert jaccard(base, far) < 0.5
    pages = [page(base), page(random_words(2)), page(near), page(far), page(base), page([]), page([])]
    pages.append(Page(id="u", title="", text=" ".join(base).upper() + "!"))
    dropped = find_near_duplicates(pages, 0.8, tmp_path)
    assert dropped.tolist() == [False, False, True, False, True, False, False, True]


def test_equal_short_pages_are_found(tmp_path: Path) -> None:
    pages = [page(["one", "two"]), page(["two", "one"]), page(["one", "two"])]
    assert find_near_duplicates(pages, 1.0, tmp_path).tolist() == [False, False, True]


def test_every_dropped_page_has_a_similar_kept_one(tmp_path: Path) -> None:
    # A chain in which each page resembles the one before it more than the first.
    chain = [random_words(3)]
    for step in range(30):
        chain.append(changed(chain[-1], [10 * step]))
    pages = [page(words) for words in chain]
    dropped = find_near_duplicates(pages, 0.8, tmp_path)
    signatures = [sign_page(entry)[1] for entry in pages]
    kept = [number for number in range(len(pages)) if not dropped[number]]
    assert 1 < len(kept) < len(pages)
    for number in np.flatnonzero(dropped):
        assert any(
            np.mean(signatures[number] == signatures[other]) >= 0.8 for other in kept if other < number
        )


def test_slices_of_keys_find_what_one_sort_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [page(random_words(number % 7, 40)) for number in range(40)]
    whole = find_near_duplicates(pages, 0.9, tmp_path / "whole")
    monkeypatch.setattr(near_duplicates, "KEYS_PER_SLICE", 6)
    assert find_near_duplicates(pages, 0.9, tmp_path / "sliced").tolist() == whole.tolist()
    assert whole.sum() == 33


def test_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "PAGES_PER_BLOCK", 4)
    pages = [page(random_words(number % 5, 40)) for number in range(10)]

    def interrupted():
        yield from pages[:6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_near_duplicates(interrupted(), 0.9, tmp_path)
    path = tmp_path / SIGNATURES_FILE
    assert path.stat().st_size == 4 * RECORD.itemsize
    path.write_bytes(path.read_bytes() + b"half a record")
    signed: list[Page] = []
    monkeypatch.setattr(near_duplicates, "sign_page", lambda entry: signed.append(entry) or sign_page(entry))
    assert find_near_duplicates(pages, 0.9, tmp_path).tolist() == [False] * 5 + [True] * 5
    assert len(signed) == 6


def test_no_pages(tmp_path: Path) -> None:
    assert find_near_duplicates([], 0.9, tmp_path).shape == (0,)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_a_pair_at_the_threshold(threshold: float) -> None:
    rows = rows_per_band(threshold)
    assert NUM_PERMUTATIONS % rows == 0
    assert 1 - (1 - threshold**rows) ** (NUM_PERMUTATIONS // rows) >= MIN_FOUND


def test_hashes_of_rows_differ_in_every_column() -> None:
    rows = np.array(list(itertools.product(range(4), repeat=3)), dtype=np.uint32)
    assert len(set(hash_rows(rows).tolist())) == 64
    assert hash_rows(rows).tolist() == hash_rows(rows.copy()).tolist()
