"""Encoding: an interrupted call goes on where it stopped, and leaves the files of an uninterrupted one."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import InputError
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.encode import encode_index, write_codes
from strata.retrieval.index.manifest import read_manifest

from ..fake_encoder import FakeEncoder
from ..small_index import make_index, random_texts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("built"), random_texts(230), chunks_per_shard=100).folder


@pytest.fixture
def store(built: Path, tmp_path: Path) -> ChunkStore:
    shutil.copytree(built, tmp_path / "index")
    return ChunkStore(tmp_path / "index")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("stored", ["float16", "int8"])
@pytest.mark.parametrize("stop_after", [0, 20, 64, 100, 150, 229])
def test_interrupted_and_resumed_equals_uninterrupted(
    store: ChunkStore, built: Path, tmp_path: Path, stored: str, stop_after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_index(store.folder, FakeEncoder(stop_after=stop_after), stored=stored, block_rows=16)
    assert "dense/fake" not in read_manifest(store.folder).parts
    again = FakeEncoder()
    told: list[int] = []
    encode_index(store.folder, again, stored=stored, block_rows=16, report=told.append)
    assert 230 - stop_after <= again.num_passages < 230 - stop_after + 16 + 1
    assert told == sorted(told)
    assert told[-1] == 230
    whole = shutil.copytree(built, tmp_path / "whole")
    encode_index(whole, FakeEncoder(), stored=stored, block_rows=16)
    assert digests(store.folder / "dense") == digests(whole / "dense")
    ours, theirs = (read_manifest(folder).parts["dense/fake"] for folder in (store.folder, whole))
    assert ours == theirs


def test_a_finished_part_is_left_as_it_is(store: ChunkStore) -> None:
    encode_index(store.folder, FakeEncoder())
    again = FakeEncoder()
    assert encode_index(store.folder, again) == "dense/fake"
    assert again.num_passages == 0


def test_other_settings_or_another_encoder_are_refused(store: ChunkStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_index(store.folder, FakeEncoder(stop_after=50), block_rows=16)
    with pytest.raises(InputError, match="made with seed = 0, now it is 1"):
        encode_index(store.folder, FakeEncoder(seed=1), block_rows=16)
    with pytest.raises(InputError, match="made with stored = 'float16', now it is 'int8'"):
        encode_index(store.folder, FakeEncoder(), stored="int8", block_rows=16)


def test_two_encoders_stand_side_by_side(store: ChunkStore) -> None:
    encode_index(store.folder, FakeEncoder())
    encode_index(store.folder, FakeEncoder(name="other", dim=8))
    parts = read_manifest(store.folder).parts
    assert parts["dense/fake"]["dim"] == 24
    assert parts["dense/other"]["dim"] == 8


@pytest.mark.parametrize("value", [np.nan, 1e9])
def test_a_vector_that_float16_cannot_hold_is_named(store: ChunkStore, value: float) -> None:
    class Broken(FakeEncoder):
        def encode_passages(self, texts):
            vectors = super().encode_passages(texts)
            vectors[3, 5] = value
            return vectors

    with pytest.raises(FloatingPointError, match="chunk 3#0 is not finite in float16"):
        encode_index(store.folder, Broken(normalised=False))


def test_vectors_that_are_not_what_the_encoder_says_are_refused(store: ChunkStore) -> None:
    class Longer(FakeEncoder):
        def encode_passages(self, texts):
            return super().encode_passages(texts) * 2

    with pytest.raises(ValueError, match="says its vectors are normalised"):
        encode_index(store.folder, Longer())


@pytest.mark.parametrize("codes", ["int8", "binary"])
def test_codes_are_what_the_vectors_say(store: ChunkStore, codes: str) -> None:
    encode_index(store.folder, FakeEncoder(dim=21))
    write_codes(store.folder, "fake", codes, block_rows=7)
    folder = store.folder / "dense" / "fake"
    for number in range(3):
        vectors = np.load(folder / f"{number:05d}.npy")
        found = np.load(folder / codes / f"{number:05d}.npy")
        if codes == "binary":
            np.testing.assert_array_equal(found, np.packbits(vectors > 0, axis=1))
        else:
            scales = np.load(folder / codes / f"{number:05d}.scale.npy")
            assert (np.abs(found * scales[:, None] - vectors) <= scales[:, None] * 0.501).all()
    assert f"dense/fake/{codes}" in read_manifest(store.folder).parts
    assert write_codes(store.folder, "fake", codes) == f"dense/fake/{codes}"


@pytest.mark.parametrize("codes", ["int8", "binary"])
@pytest.mark.parametrize("stop_after", [16, 100, 132, 220])
def test_interrupted_codes_go_on(store: ChunkStore, tmp_path: Path, codes: str, stop_after: int) -> None:
    encode_index(store.folder, FakeEncoder())
    whole = shutil.copytree(store.folder, tmp_path / "whole")
    write_codes(whole, "fake", codes, block_rows=16)

    def stop(num_done: int) -> None:
        if num_done >= stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_codes(store.folder, "fake", codes, block_rows=16, report=stop)
    assert f"dense/fake/{codes}" not in read_manifest(store.folder).parts
    told: list[int] = []
    write_codes(store.folder, "fake", codes, block_rows=16, report=told.append)
    assert min(told, default=230) > stop_after
    assert digests(store.folder / "dense") == digests(whole / "dense")
    assert read_manifest(store.folder).parts == read_manifest(whole).parts


def test_vectors_and_codes_whose_folder_was_removed_are_made_again(store: ChunkStore) -> None:
    encode_index(store.folder, FakeEncoder())
    write_codes(store.folder, "fake", "int8")
    before = digests(store.folder)
    shutil.rmtree(store.folder / "dense" / "fake")
    encode_index(store.folder, FakeEncoder())
    write_codes(store.folder, "fake", "int8")
    assert digests(store.folder) == before


def test_codes_of_int8_vectors_are_refused(store: ChunkStore) -> None:
    encode_index(store.folder, FakeEncoder(), stored="int8")
    with pytest.raises(InputError, match="stored as int8; expected float16"):
        write_codes(store.folder, "fake", "binary")
