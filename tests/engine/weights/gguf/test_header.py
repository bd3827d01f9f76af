"""GGUF headers: those of whole files as the gguf package reads them, damaged ones in one line each."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.gguf import header as header_module
from strata.engine.weights.gguf.header import StringArray, read_gguf_header

gguf = pytest.importorskip("gguf")

from ....tiny_gguf import write_tiny_gguf  # noqa: E402

STRING, ARRAY, UINT32 = 8, 9, 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", family="llama-tied")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def value(key: str, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def tensor(name: str = "t", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def file_of(values: list[bytes], tensors: list[bytes], version: int = 3, data: int = 64) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(values))
    whole = b"GGUF" + counts + b"".join(values) + b"".join(tensors)
    return whole + bytes(-len(whole) % 32) + bytes(data)


def test_a_header_is_what_the_gguf_package_reads(whole: Path) -> None:
    ours, theirs = read_gguf_header(whole), gguf.GGUFReader(whole)
    assert ours.metadata.keys() == {key for key in theirs.fields if not key.startswith("GGUF.")}
    for key, found in ours.metadata.items():
        expected = theirs.fields[key].contents()
        assert found == (
            StringArray(num_strings=len(expected)) if isinstance(found, StringArray) else expected
        )
    described = {found.name: found for found in theirs.tensors}
    assert ours.tensors.keys() == described.keys()
    for name, found in ours.tensors.items():
        assert found.offset == described[name].data_offset
        assert found.shape == tuple(reversed(described[name].shape.tolist()))
        assert found.type_number == described[name].tensor_type.value


DAMAGED = {
    "empty": (b"", r"the magic number takes 4 bytes"),
    "another format": (b"PK\3\4" + bytes(64), r"not a GGUF file; expected it to begin with 'GGUF'"),
    "version 1": (file_of([], [], version=1), r"GGUF version 1; expected .* version 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"its numbers are big-endian"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), r"the number of tensors: 11529\d+"),
    "many values": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), r"the number of metadata values"),
    "a long key": (file_of([struct.pack("<Q", 1 << 62)], []), r"the length of a metadata key"),
    "a long string": (
        file_of([value("k", STRING, struct.pack("<Q", 1 << 40))], []),
        r"the length of k: 1099511627776",
    ),
    "a long array": (
        file_of([value("k", ARRAY, struct.pack("<IQ", UINT32, 1 << 60))], []),
        r"the length of k: 1152921504606846976; expected at most",
    ),
    "an array beyond the file": (
        file_of([value("k", ARRAY, struct.pack("<IQ", UINT32, 1 << 20))], []),
        r"k takes 4194304 bytes at byte",
    ),
    "an array of arrays": (
        file_of([value("k", ARRAY, struct.pack("<IQ", ARRAY, 1))], []),
        r"k is an array of type 9",
    ),
    "an unknown kind of value": (file_of([value("k", 77, b"")], []), r"k is of type 77; expected 0 to 12"),
    "a key twice": (file_of([value("k", 0, b"1"), value("k", 0, b"1")], []), r"key 'k' comes twice"),
    "a key that is no text": (
        file_of([struct.pack("<Q", 2) + b"\xff\xfe"], []),
        r"a metadata key is not UTF-8",
    ),
    "alignment 0": (
        file_of([value("general.alignment", UINT32, struct.pack("<I", 0))], []),
        r"general\.alignment is 0; expected a power of two",
    ),
    "alignment 24": (
        file_of([value("general.alignment", UINT32, struct.pack("<I", 24))], []),
        r"general\.alignment is 24",
    ),
    "alignment as text": (file_of([value("general.alignment", STRING, text("32"))], []), r"is '32'"),
    "a tensor twice": (file_of([], [tensor(), tensor()]), r"two tensors are called 't'"),
    "no axes": (file_of([], [tensor(shape=())]), r"tensor t has shape \[\]"),
    "an empty axis": (file_of([], [tensor(shape=(4, 0))]), r"tensor t has shape \[0, 4\]"),
    "nine axes": (file_of([], [tensor(shape=(1,) * 9)]), r"the axes of tensor t: 9; expected at most 4"),
    "a huge shape": (file_of([], [tensor(shape=(1 << 40, 1 << 40))]), r"tensor t has shape"),
    "an offset between": (file_of([], [tensor(offset=8)]), r"tensor t begins at 8, no multiple of 32"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_header_is_one_line(tmp_path: Path, kind: str) -> None:
    content, expected = DAMAGED[kind]
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        read_gguf_header(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


PLACES = {
    "beyond the end": ([tensor(shape=(1 << 20,))], r"truncated: tensor t ends at byte \d+ of \d+"),
    "inside another": ([tensor(), tensor("u", offset=0)], r"tensors t and u overlap"),
    "a type of strange blocks": (
        [tensor(shape=(256,), kind=16)],
        r"tensor t is stored as IQ2_XXS; expected one of",
    ),
    "MXFP4": ([tensor(shape=(256,), kind=39)], r"tensor t is stored as MXFP4"),
    "a type that nobody knows": ([tensor(kind=4711)], r"tensor t is stored as type 4711"),
    "half a block": ([tensor(shape=(48,), kind=2)], r"rows of \d+ weights; Q4_0 expects a multiple of 32"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_tensors_out_of_place_are_one_line(tmp_path: Path, kind: str) -> None:
    tensors, expected = PLACES[kind]
    file = tmp_path / "model.gguf"
    file.write_bytes(file_of([], tensors))
    with pytest.raises(InputError, match=expected):
        open_checkpoint(file)


def test_a_file_cut_anywhere_is_one_line(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (*range(0, 600, 7), *range(600, len(content), len(content) // 60)):
        cut.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"not a whole GGUF file|truncated"):
            open_checkpoint(cut)


def test_flipped_bytes_never_end_otherwise(whole: Path, tmp_path: Path) -> None:
    """A header with a few wrong bytes opens, or is refused; nothing else comes out, and nothing hangs."""
    content, draw = whole.read_bytes(), random.Random(0)
    header_bytes = min(found.offset for found in read_gguf_header(whole).tensors.values())
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(header_bytes)] = draw.randrange(256)
        file = tmp_path / "flipped.gguf"
        file.write_bytes(damaged)
        try:
            read_gguf_header(file)
        except InputError:
            refused += 1
    assert refused > 30


def test_large_headers_are_refused_unread(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_module, "MAX_HEADER_BYTES", 100)
    with pytest.raises(InputError, match="not a whole GGUF file"):
        read_gguf_header(whole)
