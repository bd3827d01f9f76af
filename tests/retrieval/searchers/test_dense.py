"""Dense search of an index against brute force over the fake encoder's vectors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import InputError
from strata.retrieval.corpus.chunk import searchable_text
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.encode import encode_index, write_codes
from strata.retrieval.index.vector_store import VectorStore, list_encoders
from strata.retrieval.searchers.dense import DenseIndex, load_index_encoder, measure_recall
from strata.retrieval.types import Ranking

from ..fake_encoder import FakeEncoder
from ..small_index import make_index, random_texts

QUERIES = ("word1 word2 word3", "word7", "", "слово なに", "word1 " * 2000)


def brute_force(store: ChunkStore, encoder: FakeEncoder, queries: Sequence[str], top_k: int) -> np.ndarray:
    """Rows by float64 score of float16 passages, ties by lower row."""
    passages = encoder.encode_passages([searchable_text(chunk) for chunk in store])
    stored = passages.astype(np.float16).astype(np.float64)
    asked = encoder.encode_queries(queries).astype(np.float64)
    scores = np.array([[(query * row).sum() for row in stored] for query in asked])
    return np.argsort(-scores, axis=1, kind="stable")[:, :top_k]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("built"), random_texts(230), chunks_per_shard=100).folder


@pytest.fixture
def store(built: Path, tmp_path: Path) -> ChunkStore:
    shutil.copytree(built, tmp_path / "index")
    return ChunkStore(tmp_path / "index")


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_finds_what_brute_force_finds(store: ChunkStore, devices: tuple[str, ...], normalised: bool) -> None:
    encoder = FakeEncoder(normalised=normalised)
    encode_index(store.folder, encoder, block_rows=32)
    found = DenseIndex(store.folder, encoder, devices=devices).search(QUERIES, 40)
    np.testing.assert_array_equal(found.rows, brute_force(store, encoder, QUERIES, 40))


def test_more_places_than_chunks_and_no_queries(store: ChunkStore) -> None:
    encoder = FakeEncoder()
    encode_index(store.folder, encoder)
    index = DenseIndex(store.folder, encoder)
    found = index.search(["word1"], 300)
    assert sorted(found.rows[0, :230]) == list(range(230))
    assert (found.rows[0, 230:] == -1).all()
    assert np.isneginf(found.scores[0, 230:]).all()
    assert index.search([], 5).rows.shape == (0, 5)


def test_int8_vectors_rank_nearly_as_float16(store: ChunkStore) -> None:
    encoder = FakeEncoder()
    encode_index(store.folder, encoder, stored="int8")
    shard = VectorStore(store.folder, "fake").open_shard(0)
    assert shard.codes.dtype == np.int8
    assert shard.scales is not None
    passages = encoder.encode_passages([searchable_text(chunk) for chunk in store])[:100]
    values = shard.codes * shard.scales[:, None]
    assert np.abs(values - passages).max() <= np.abs(passages).max() / 254 * 1.001
    found = DenseIndex(store.folder, encoder).search(QUERIES[:2], 5)
    asked = encoder.encode_queries(QUERIES[:2])
    scores = asked @ encoder.encode_passages([searchable_text(chunk) for chunk in store]).T
    best = -np.sort(-scores, axis=1)[:, :5]
    np.testing.assert_allclose(np.take_along_axis(scores, found.rows, axis=1), best, atol=0.01)


@pytest.mark.parametrize("codes", ["int8", "binary"])
def test_a_first_pass_that_keeps_all_rows_is_exact(store: ChunkStore, codes: str) -> None:
    encoder = FakeEncoder(dim=21)
    encode_index(store.folder, encoder)
    write_codes(store.folder, "fake", codes, block_rows=30)
    exact = DenseIndex(store.folder, encoder).search(QUERIES, 10)
    found = DenseIndex(store.folder, encoder, first_pass=codes, oversample=23).search(QUERIES, 10)
    np.testing.assert_array_equal(found.rows, exact.rows)
    np.testing.assert_array_equal(found.scores, exact.scores)
    assert measure_recall(found, exact) == 1


def test_a_first_pass_returns_exact_scores_and_its_recall_is_measured(store: ChunkStore) -> None:
    encoder = FakeEncoder()
    encode_index(store.folder, encoder)
    write_codes(store.folder, "fake", "binary")
    exact = DenseIndex(store.folder, encoder).search(QUERIES[:2], 230)
    found = DenseIndex(store.folder, encoder, first_pass="binary", oversample=1).search(QUERIES[:2], 10)
    for query in range(2):
        score_of = dict(zip(exact.rows[query], exact.scores[query], strict=True))
        assert [score_of[row] for row in found.rows[query]] == found.scores[query].tolist()
        assert (np.diff(found.scores[query]) <= 0).all()


def test_recall_counts_what_was_found() -> None:
    exact = Ranking(rows=np.array([[1, 2], [3, -1]]), scores=np.zeros((2, 2), dtype=np.float32))
    found = Ranking(rows=np.array([[2, 9], [-1, -1]]), scores=np.zeros((2, 2), dtype=np.float32))
    assert measure_recall(found, exact) == pytest.approx(1 / 3)


def test_another_encoder_of_that_name_is_refused(store: ChunkStore) -> None:
    encode_index(store.folder, FakeEncoder())
    with pytest.raises(InputError, match="made with seed = 0, the encoder now has 1"):
        DenseIndex(store.folder, FakeEncoder(seed=1))
    with pytest.raises(InputError, match="no vectors of encoder 'other'; expected one of: fake"):
        DenseIndex(store.folder, FakeEncoder(name="other"))
    with pytest.raises(InputError, match="has no int8 codes"):
        DenseIndex(store.folder, FakeEncoder(), first_pass="int8")
    with pytest.raises(InputError, match="--encoder: other; expected one of: fake"):
        load_index_encoder(store.folder, "other")
    assert list_encoders(store.folder) == ["fake"]


def test_broken_shards_are_refused_by_name(store: ChunkStore) -> None:
    encoder = FakeEncoder()
    encode_index(store.folder, encoder)
    path = store.folder / "dense" / "fake" / "00001.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"00001\.npy: damaged"):
        DenseIndex(store.folder, encoder)
    path.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"00001\.npy: \d+ bytes; expected"):
        DenseIndex(store.folder, encoder)
    path.unlink()
    with pytest.raises(InputError, match=r"00001\.npy: missing"):
        DenseIndex(store.folder, encoder)


def test_a_shard_cut_while_the_index_is_open_is_refused_by_name(store: ChunkStore) -> None:
    encoder = FakeEncoder()
    encode_index(store.folder, encoder)
    index = DenseIndex(store.folder, encoder)
    path = store.folder / "dense" / "fake" / "00002.npy"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"00002\.npy: cannot be read"):
        index.search(["word1"], 3)
    np.save(path, np.zeros((30, 23), dtype=np.float16))
    with pytest.raises(InputError, match=r"00002\.npy: float16 \[30, 23\]; expected float16 \[30, 24\]"):
        index.search(["word1"], 3)


def test_vectors_of_another_version_are_refused(store: ChunkStore) -> None:
    encoder = FakeEncoder()
    encode_index(store.folder, encoder)
    path = store.folder / "dense" / "fake" / "encoder.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"format_version": 2}), encoding="utf-8")
    manifest_path = store.folder / "manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    del manifest["parts"]["dense/fake"]["files"]["dense/fake/encoder.json"]
    manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(InputError, match=r"encoder\.json: format_version is 2; expected 1"):
        DenseIndex(store.folder, encoder)
