"""tantivy on a disk that is full: one line with the folder, and a later call that goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.engine.files import OutputError
from strata.retrieval.index import tantivy_index
from strata.retrieval.index.build import build_index
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.searchers.bm25 import TantivyBm25

from ..small_index import random_texts, write_corpus


class FullDisk:
    """A tantivy index whose writer fails as tantivy does when the system refuses a write."""

    def __init__(self, index: object) -> None:
        self._index = index

    def writer(self, num_bytes: int) -> FullDisk:
        return self

    def add_document(self, document: object) -> None: ...

    def commit(self) -> None:
        raise ValueError("An IO error occurred:\n'No space left on device (os error 28)'")


def test_a_full_disk_under_tantivy_is_told_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IndexConfig(
        corpus=(write_corpus(tmp_path / "corpus.jsonl", random_texts(9)),), out=tmp_path / "index"
    )
    whole = tantivy_index._open_partial
    with monkeypatch.context() as patch:
        patch.setattr(tantivy_index, "_open_partial", lambda *given: (FullDisk(whole(*given)), 0))
        with pytest.raises(OutputError, match=r"cannot write .*tantivy\.partial: .*No space left") as caught:
            build_index(config)
    assert "\n" not in str(caught.value)
    build_index(config)
    assert len(ChunkStore(config.out)) == 9
    assert TantivyBm25(config.out).search(["word1"], 3).rows[0][0] >= 0
