"""Checksums of a packed checkpoint: written, read back, and compared as tensors are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from strata.engine.types import InputError
from strata.engine.weights.byte_sources import FileSource
from strata.engine.weights.checksums import CHECKSUMS_FILE, read_checksums, start_digest, write_checksums
from strata.engine.weights.read_cache import CachedSource
from strata.engine.weights.safetensors_file import FLOATING_DTYPES, TORCH_DTYPES, StoredTensor, read_header
from strata.engine.weights.tensor_reader import VERIFIED_PIECE_BYTES, TensorReader

SHARD = "model-00001-of-00002.safetensors"
DIGEST = "0123456789abcdef" * 4


def make_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "table": torch.randn(9, 700, generator=generator).to(torch.bfloat16),
        "codes": torch.randint(0, 255, (40, 50), dtype=torch.uint8, generator=generator),
        "scale": torch.tensor(0.25),
        "empty": torch.empty(0, 4),
    }


def digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Straight from the memory of the tensors, not from what the code under test reads."""
    return {
        name: hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with one shard and its checksums."""
    tensors = make_tensors()
    save_file(tensors, tmp_path / SHARD)
    write_checksums(tmp_path, {SHARD: digests(tensors)})
    return tmp_path


def open_shard(folder: Path, **settings) -> tuple[TensorReader, dict[str, StoredTensor]]:
    return TensorReader(checksums=read_checksums(folder), **settings), read_header(folder / SHARD)


def flip_byte(tensor: StoredTensor, at: int) -> None:
    with tensor.file.open("rb+") as file:
        file.seek(tensor.offset + at)
        byte = file.read(1)[0]
        file.seek(tensor.offset + at)
        file.write(bytes([byte ^ 1]))


def test_what_is_written_is_read_back(tmp_path):
    tensors = {SHARD: {"a": DIGEST, "b": DIGEST[::-1]}, "other.safetensors": {}}
    write_checksums(tmp_path, tensors)
    assert read_checksums(tmp_path).tensors == tensors
    assert json.loads((tmp_path / CHECKSUMS_FILE).read_text())["algorithm"] == "sha256"
    assert [path.name for path in tmp_path.iterdir()] == [CHECKSUMS_FILE]


def test_a_digest_in_pieces_is_the_sha256_of_the_whole():
    content, digest = bytes(range(256)) * 50, start_digest()
    for first in range(0, len(content), 1000):
        digest.update(content[first : first + 1000])
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


def test_whole_tensors_read_right(folder):
    reader, stored = open_shard(folder)
    for name, tensor in make_tensors().items():
        assert torch.equal(reader.read(stored[name]), tensor)
    assert torch.equal(reader.read_rows(stored["codes"], 0, 40), make_tensors()["codes"])
    reader.close()


@pytest.mark.parametrize("at", [0, 5000, 12599])
@pytest.mark.parametrize("method", ["read", "verify", "read_rows", "read_into"])
def test_one_flipped_bit_names_file_and_tensor(method, at, folder):
    reader, stored = open_shard(folder)
    table = stored["table"]
    flip_byte(table, at)
    calls = {
        "read": lambda: reader.read(table),
        "verify": lambda: reader.verify(table),
        "read_rows": lambda: reader.read_rows(table, 0, 9),
        "read_into": lambda: reader.read_into(table, torch.empty(table.num_bytes, dtype=torch.uint8)),
    }
    # A tensor that failed is not taken for verified: the second try fails too.
    for _ in range(2):
        with pytest.raises(InputError, match=rf"{SHARD}: tensor table is damaged: its sha256 is [0-9a-f]+, "):
            calls[method]()
    assert reader.read(stored["codes"]).shape == (40, 50)


def test_parts_are_not_verified_and_a_reader_without_checksums_does_not_look(folder):
    reader, stored = open_shard(folder)
    flip_byte(stored["table"], 0)
    assert reader.read_rows(stored["table"], 0, 8).shape == (8, 700)
    assert reader.read_rows(stored["table"], 1, 9).shape == (8, 700)
    assert TensorReader().read(stored["table"]).shape == (9, 700)


@pytest.mark.parametrize("method", ["read", "verify"])
def test_a_tensor_is_hashed_the_first_time_only(method, folder):
    reader, stored = open_shard(folder)
    getattr(reader, method)(stored["table"])
    flip_byte(stored["table"], 0)
    assert reader.read(stored["table"]).shape == (9, 700)
    reader.verify(stored["table"])
    with pytest.raises(InputError, match="tensor table is damaged"):
        open_shard(folder)[0].verify(stored["table"])


@pytest.mark.parametrize("method", ["read", "verify"])
def test_a_file_cut_short_names_the_tensor(method, folder):
    reader, stored = open_shard(folder)
    table = stored["table"]
    with table.file.open("rb+") as file:
        file.truncate(table.offset + table.num_bytes - 1)
    with pytest.raises(InputError, match=rf"{SHARD}: truncated while reading tensor table$"):
        getattr(reader, method)(table)
    assert (reader.num_bytes_read, reader.num_bytes_verified) == (0, 0)


def test_verify_is_counted_apart(folder):
    reader, stored = open_shard(folder)
    reader.verify(stored["table"])
    assert (reader.num_bytes_read, reader.num_bytes_verified) == (0, 9 * 700 * 2)
    reader.verify(stored["table"])
    reader.read(stored["codes"])
    assert (reader.num_bytes_read, reader.num_bytes_verified) == (2000, 9 * 700 * 2)


def test_verify_reads_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("strata.engine.weights.tensor_reader.VERIFIED_PIECE_BYTES", 1000)
    tensors = make_tensors()
    save_file(tensors, tmp_path / SHARD)
    write_checksums(tmp_path, {SHARD: digests(tensors)})
    sizes, original = [], FileSource.read_at

    def read_at(self, file, offset, view, *, keep=True):
        sizes.append(len(view))
        original(self, file, offset, view, keep=keep)

    monkeypatch.setattr(FileSource, "read_at", read_at)
    reader, stored = open_shard(tmp_path)
    reader.verify(stored["table"])
    assert sizes == [1000] * 12 + [600]
    assert VERIFIED_PIECE_BYTES == 8 << 20


def test_verify_goes_past_the_cache(tmp_path):
    tensors = {"table": torch.arange(100_000, dtype=torch.int32)}
    save_file(tensors, tmp_path / SHARD)
    write_checksums(tmp_path, {SHARD: digests(tensors)})
    cache = CachedSource(FileSource(), tmp_path / "cache", reserve_bytes=0)
    reader, stored = open_shard(tmp_path, source=cache)
    reader.verify(stored["table"])
    assert (cache.num_bytes_from_source, cache.num_bytes_kept) == (400_000, 0)
    assert torch.equal(reader.read(stored["table"]), tensors["table"])
    assert cache.num_bytes_kept == 400_000


def test_a_damaged_copy_in_the_cache_is_noticed(tmp_path):
    tensors = {"table": torch.arange(100_000, dtype=torch.int32)}
    save_file(tensors, tmp_path / SHARD)
    write_checksums(tmp_path, {SHARD: digests(tensors)})
    for damaged in (False, True):
        reader, stored = open_shard(tmp_path, source=CachedSource(FileSource(), tmp_path / "cache", 0))
        if not damaged:
            reader.read(stored["table"])
            (extent,) = (tmp_path / "cache").glob("*/*")
            extent.write_bytes(bytes(400_000))
            continue
        with pytest.raises(InputError, match=r"tensor table is damaged.* or a cached copy of it"):
            reader.read(stored["table"])


@pytest.mark.parametrize("known", [{}, {SHARD: {"table": DIGEST}}, {"sub/" + SHARD: {"codes": DIGEST}}])
def test_a_tensor_without_a_checksum_is_refused(known, folder):
    write_checksums(folder, known)
    reader, stored = open_shard(folder)
    with pytest.raises(InputError, match=rf"{SHARD}: tensor codes has no checksum; expected one in .*json"):
        reader.read(stored["codes"])


def test_a_shard_in_a_folder_below_goes_by_its_relative_name(tmp_path):
    tensors = make_tensors()
    (tmp_path / "sub").mkdir()
    save_file(tensors, tmp_path / "sub" / SHARD)
    write_checksums(tmp_path, {"sub/" + SHARD: digests(tensors)})
    reader = TensorReader(checksums=read_checksums(tmp_path))
    assert torch.equal(reader.read(read_header(tmp_path / "sub" / SHARD)["codes"]), tensors["codes"])


def test_no_checksum_file(tmp_path):
    with pytest.raises(InputError, match=r"--verify: .*expected a checkpoint written by `strata pack`"):
        read_checksums(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"tensors": {}}', "algorithm: field required"),
        ('{"algorithm": "md5", "tensors": {}}', "algorithm: .*'md5'"),
        ('{"algorithm": "sha256"}', "tensors: field required"),
        ('{"algorithm": "sha256", "tensors": {"a": []}}', "tensors.a: "),
        ('{"algorithm": "sha256", "tensors": {"a": {"b": 3}}}', "tensors.a.b: .* found 3"),
        ('{"algorithm": "sha256", "tensors": {"a": {"b": "12"}}}', "tensors.a.b: .* found '12'"),
    ],
)
def test_a_malformed_checksum_file(content, message, tmp_path):
    (tmp_path / CHECKSUMS_FILE).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=rf"{CHECKSUMS_FILE}: {message}"):
        read_checksums(tmp_path)


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_known_dtype_is_read_as_safetensors_reads_it(name, tmp_path):
    codes = torch.arange(64, dtype=torch.uint8) % (2 if name == "BOOL" else 64)
    save_file({"a": codes.view(TORCH_DTYPES[name])}, tmp_path / SHARD)
    stored = read_header(tmp_path / SHARD)["a"]
    assert stored.dtype == name
    actual, expected = TensorReader().read(stored), load_file(tmp_path / SHARD)["a"]
    assert actual.dtype == stored.torch_dtype == expected.dtype
    assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))
    if name in FLOATING_DTYPES:
        assert stored.floating_dtype == expected.dtype
    else:
        with pytest.raises(
            InputError, match=f"tensor a has dtype {name}; expected one of F64, F32, F16, BF16"
        ):
            stored.floating_dtype  # noqa: B018  (raises)


def test_an_unknown_dtype_is_refused(tmp_path):
    stored = StoredTensor(name="a", file=tmp_path, dtype="C64", shape=(1,), offset=8, num_bytes=8)
    with pytest.raises(InputError, match=r"tensor a has dtype C64; expected one of F64, .*, BOOL"):
        stored.torch_dtype  # noqa: B018  (raises)
