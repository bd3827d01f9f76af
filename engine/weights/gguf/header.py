"""What the header of a GGUF file says: metadata by key, and where each tensor lies. Knows nothing of models.

Format: magic, version, two counts, then that many metadata values and tensor descriptions, then the tensors'
bytes from the next multiple of the alignment on. Every count and length is compared with what is left of the
file before anything is read by it, so that a damaged or hostile header ends in one line.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from strata.engine.types import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_HEADER_BYTES = 1 << 30
MAX_ITEMS = 1 << 20
"""Metadata values, or tensors, of one file."""
MAX_ELEMENTS = 1 << 22
"""Of an array of metadata; the largest vocabularies have 2 ** 18 tokens."""
MAX_NAME_BYTES = 1 << 16
MAX_AXES = 4

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How `struct` calls the types of metadata values."""


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor: `type_number` is ggml's, `shape` in torch's order, `offset` from the start of the file."""

    name: str
    type_number: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, kw_only=True)
class StringArray:
    """Strings of the metadata that nobody here needs: how many there are."""

    num_strings: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """The header of one file; arrays of numbers are lists, arrays of strings are counts."""

    file: Path
    file_bytes: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(file: Path) -> GgufHeader:
    """Reads a file's header and none of its tensors.

    Raises:
        InputError: no such file, another format or version, or a header that is damaged.
    """
    try:
        with file.open("rb") as stream:
            return _read_header(_Cursor(file, stream, file.stat().st_size))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


class _Cursor:
    """Reads values one after another and says in one line what is wrong."""

    def __init__(self, file: Path, stream: BinaryIO, file_bytes: int) -> None:
        self.file, self.file_bytes, self.place = file, file_bytes, 0
        self._stream = stream

    def refuse(self, reason: str) -> InputError:
        return InputError(f"{self.file}: not a whole GGUF file ({reason})")

    def take(self, num_bytes: int, what: str) -> bytes:
        if num_bytes > min(self.file_bytes, MAX_HEADER_BYTES) - self.place:
            raise self.refuse(f"{what} takes {num_bytes} bytes at byte {self.place} of {self.file_bytes}")
        self.place += num_bytes
        return self._stream.read(num_bytes)

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, limit: int, what: str, code: str = "Q") -> int:
        found = int(self.number(code, what))
        if found > limit:
            raise self.refuse(f"{what}: {found}; expected at most {limit}")
        return found

    def text(self, what: str, max_bytes: int = MAX_HEADER_BYTES) -> str:
        raw = self.take(self.count(max_bytes, f"the length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"{what} is not UTF-8") from None


def _read_header(cursor: _Cursor) -> GgufHeader:
    if cursor.take(4, "the magic number") != MAGIC:
        raise InputError(f"{cursor.file}: not a GGUF file; expected it to begin with {MAGIC.decode()!r}")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        big_endian = not version & 0xFFFF
        told = "its numbers are big-endian" if big_endian else f"GGUF version {version}"
        raise InputError(f"{cursor.file}: {told}; expected little-endian GGUF of version 2 or 3")
    num_tensors = cursor.count(MAX_ITEMS, "the number of tensors")
    num_values = cursor.count(MAX_ITEMS, "the number of metadata values")
    metadata = _read_metadata(cursor, num_values)
    described = [_read_tensor(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.refuse(f"general.alignment is {alignment!r}; expected a power of two")
    data_start = -(-cursor.place // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, number, shape, offset in described:
        if name in tensors:
            raise cursor.refuse(f"two tensors are called {name!r}")
        if offset % alignment:
            raise cursor.refuse(f"tensor {name} begins at {offset}, no multiple of {alignment}")
        tensors[name] = GgufTensor(name=name, type_number=number, shape=shape, offset=data_start + offset)
    return GgufHeader(file=cursor.file, file_bytes=cursor.file_bytes, metadata=metadata, tensors=tensors)


def _read_metadata(cursor: _Cursor, num_values: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.text("a metadata key", MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.refuse(f"metadata key {key!r} comes twice")
        metadata[key] = _read_value(cursor, key)
    return metadata


def _read_value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number("I", f"the type of {key}")
    if kind in SCALARS:
        return cursor.number(SCALARS[kind], key)
    if kind == STRING:
        return cursor.text(key)
    if kind != ARRAY:
        raise cursor.refuse(f"{key} is of type {kind}; expected 0 to 12")
    kind = cursor.number("I", f"the type of {key}")
    length = cursor.count(MAX_ELEMENTS, f"the length of {key}")
    if kind == STRING:
        for _ in range(length):
            cursor.take(cursor.count(MAX_HEADER_BYTES, f"a string of {key}"), key)
        return StringArray(num_strings=length)
    if kind not in SCALARS:
        raise cursor.refuse(f"{key} is an array of type {kind}; expected numbers or strings")
    code = "<" + SCALARS[kind]
    return np.frombuffer(cursor.take(length * struct.calcsize(code), key), np.dtype(code)).tolist()


def _read_tensor(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    name = cursor.text("a tensor's name", MAX_NAME_BYTES)
    num_axes = cursor.count(MAX_AXES, f"the axes of tensor {name}", code="I")
    # ggml gives the axis along which weights lie one after another first, torch gives it last.
    shape = tuple(cursor.number("Q", f"the shape of tensor {name}") for _ in range(num_axes))[::-1]
    if not shape or min(shape) < 1 or math.prod(shape) > 1 << 48:
        raise cursor.refuse(f"tensor {name} has shape {list(shape)}")
    number = cursor.number("I", f"the type of tensor {name}")
    return name, number, shape, cursor.number("Q", f"the offset of tensor {name}")


def check_places(header: GgufHeader, sizes: Mapping[str, int]) -> None:
    """Compares where tensors lie with the file and with one another.

    Args:
        header: of the file.
        sizes: bytes of each tensor.

    Raises:
        InputError: one that ends behind the file, or begins inside another.
    """
    ordered = sorted(header.tensors.values(), key=lambda tensor: tensor.offset)
    for tensor in ordered:
        end = tensor.offset + sizes[tensor.name]
        if end > header.file_bytes:
            raise InputError(
                f"{header.file}: truncated: tensor {tensor.name} ends at byte {end} of {header.file_bytes}"
            )
    for one, other in _overlaps(ordered, sizes):
        raise InputError(f"{header.file}: not a whole GGUF file (tensors {one} and {other} overlap)")


def _overlaps(ordered: list[GgufTensor], sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for tensor, following in pairwise(ordered):
        if tensor.offset + sizes[tensor.name] > following.offset:
            yield tensor.name, following.name
