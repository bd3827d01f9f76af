"""Page ids that come twice: refused with both places, whatever batch they fall into; a mere hash is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.retrieval.corpus import page_ids
from strata.retrieval.corpus.page_ids import refuse_repeats
from strata.retrieval.index.build import build_index
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.types import Page


def make_pages(ids: list[str]) -> list[Page]:
    return [Page(id=id, title="", text="") for id in ids]


def passed(ids: list[str], batch_ids: int) -> list[str]:
    pages = make_pages(ids)
    placed = [(f"line {line}", page) for line, page in enumerate(pages, start=1)]
    return [page.id for page in refuse_repeats(pages, lambda: placed, batch_ids)]


@pytest.mark.parametrize("batch_ids", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 49), (23, 24), (20, 41)])
def test_a_repeated_id_is_refused_with_both_places(batch_ids: int, first: int, second: int) -> None:
    ids = [f"page {number}" for number in range(50)]
    assert passed(ids, batch_ids) == ids
    ids[second] = ids[first]
    expected = f"line {second + 1}: the page's id 'page {first}' is that of line {first + 1} too"
    with pytest.raises(InputError, match=expected):
        passed(ids, batch_ids)


@pytest.mark.parametrize("batch_ids", [1, 4, 100])
def test_two_ids_of_one_hash_are_no_repeat(batch_ids: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_ids, "hash_id", lambda id: int(id) % 5)
    ids = [str(number) for number in range(12)]
    assert passed(ids, batch_ids) == ids
    with pytest.raises(InputError, match="line 13: the page's id '7' is that of line 8 too"):
        passed([*ids, "7"], batch_ids)


def test_nothing_is_read_again_without_need() -> None:
    def never() -> Iterator[tuple[str, Page]]:
        raise AssertionError("was called")

    pages = make_pages(["a", "b", "c"])
    assert list(refuse_repeats(pages, never, 2)) == pages
    assert list(refuse_repeats([], never)) == []


def write(path: Path, *ids: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"id": id, "text": f"Page {id}."}) + "\n" for id in ids))
    return path


def test_an_index_of_two_files_with_one_id_is_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", "a", "b"), write(tmp_path / "two.jsonl", "c", "b")
    expected = f"{two}: line 2: the page's id 'b' is that of {one}: line 2 too; expected each id once"
    with pytest.raises(InputError) as caught:
        build_index(IndexConfig(corpus=(one, two), out=tmp_path / "index"))
    assert str(caught.value) == expected
    assert not (tmp_path / "index" / "manifest.json").exists()
    done = build_index(IndexConfig(corpus=(one, two), out=tmp_path / "fewer", limit=3))
    assert done.manifest.num_pages == 3


def test_ids_before_an_interruption_count(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", "a", "b", "c"), write(tmp_path / "two.jsonl", "d", "a")
    config = IndexConfig(corpus=(one, two), out=tmp_path / "index", chunks_per_shard=1)

    def stop(stage: str, num_done: int) -> None:
        if num_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(config, stop)
    seen: list[int] = []
    with pytest.raises(InputError, match=r"the page's id 'a' is that of .*one\.jsonl: line 1 too"):
        build_index(config, lambda stage, num_done: seen.append(num_done))
    assert seen[0] > 1


def test_files_of_one_name_in_several_folders_are_no_repeat(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / "corpus" / folder).mkdir(parents=True)
        (tmp_path / "corpus" / folder / "notes.txt").write_text(f"Notes of {folder}.")
        (tmp_path / "corpus" / folder / "rows.jsonl").write_text('{"text": "A row."}\n')
    done = build_index(IndexConfig(corpus=(tmp_path / "corpus",), out=tmp_path / "index"))
    assert done.manifest.num_pages == 4
