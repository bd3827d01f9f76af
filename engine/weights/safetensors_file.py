"""Where each tensor lies in safetensors files, and how its bytes are read. Knows nothing of models.

Format (source: the safetensors README): 8 bytes little-endian header length, a JSON header giving for each
tensor dtype, shape and byte range, then the bytes. Reading goes through a byte source into buffers the caller
owns, so that a layer costs no allocation and no memory map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from strata.engine.json_files import Schema, check_schema, parse_json
from strata.engine.types import InputError

FLOATING_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What plain weights are stored as."""

TORCH_DTYPES = FLOATING_DTYPES | {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Every dtype that can be read; those beyond FLOATING_DTYPES hold codes of a quantized checkpoint."""

OTHER_DTYPE_BITS = {
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
    "U16": 16,
    "U32": 32,
    "U64": 64,
    "C64": 64,
}
"""Dtypes of the format that are not read here, so that what is stored beside them can be."""

MAX_HEADER_BYTES = 100 << 20
MAX_NAME_CHARACTERS = 1_000

Extent = Annotated[int, Field(ge=0, lt=1 << 63)]


class HeaderEntry(Schema):
    """What a header says of one tensor; offsets are counted from the header's end."""

    dtype: str
    shape: list[Extent]
    data_offsets: Annotated[list[Extent], Field(min_length=2, max_length=2)]


class Header(Schema):
    """A header whose `__metadata__` stands beside the tensors."""

    tensors: dict[str, HeaderEntry]
    metadata: dict[str, str] | None


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor on disk; `offset` is counted from the start of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it.

        Raises:
            InputError: a dtype that is not known here.
        """
        return self._dtype_in(TORCH_DTYPES)

    @property
    def expected_bytes(self) -> int:
        """Bytes that dtype and shape call for; those of less than a byte a value are packed.

        Raises:
            InputError: a dtype that the format does not know.
        """
        bits = OTHER_DTYPE_BITS.get(self.dtype) or 8 * self.torch_dtype.itemsize
        return (math.prod(self.shape) * bits + 7) // 8

    @property
    def floating_dtype(self) -> torch.dtype:
        """The dtype of a plain weight as torch names it.

        Raises:
            InputError: a dtype that is not a plain floating-point one.
        """
        return self._dtype_in(FLOATING_DTYPES)

    def _dtype_in(self, dtypes: dict[str, torch.dtype]) -> torch.dtype:
        if self.dtype not in dtypes:
            known = ", ".join(dtypes)
            raise InputError(
                f"{self.file}: tensor {self.name} has dtype {self.dtype}; expected one of {known}"
            )
        return dtypes[self.dtype]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Tensors of one safetensors file by name.

    As strict as the safetensors library (Metadata::validate): tensors lie back to back from the header's end
    to the file's, each of the bytes that its dtype and shape call for. Names that come twice are refused too.

    Raises:
        InputError: the file is absent, truncated, or not a safetensors file.
    """
    if not file.is_file():
        raise InputError(f"{file}: file is missing, although the checkpoint needs it")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise InputError(
                f"{file}: not a whole safetensors file (its header does not fit in {size} bytes)"
            )
        header = _parse_header(stream.read(length), file)
    tensors = {name: _stored_tensor(file, name, entry, 8 + length) for name, entry in header.tensors.items()}
    _check_layout(tensors.values(), 8 + length, size, file)
    return tensors


def _parse_header(data: bytes, file: Path) -> Header:
    where = f"{file}: not a safetensors file"
    content = parse_json(data, f"{where}: its header", unique_keys=True)
    if not isinstance(content, dict):
        raise InputError(f"{where}: its header is a {type(content).__name__}; expected a JSON object")
    longest = max(map(len, content), default=0)
    if longest > MAX_NAME_CHARACTERS:
        raise InputError(
            f"{where}: a tensor's name has {longest} characters; expected at most {MAX_NAME_CHARACTERS}"
        )
    metadata = content.pop("__metadata__", None)
    return check_schema(Header, {"tensors": content, "metadata": metadata}, where)


def _stored_tensor(file: Path, name: str, entry: HeaderEntry, data_start: int) -> StoredTensor:
    begin, end = entry.data_offsets
    if end < begin:
        raise InputError(f"{file}: tensor {name} ends at byte {end}, before it begins at {begin}")
    return StoredTensor(
        name=name,
        file=file,
        dtype=entry.dtype,
        shape=tuple(entry.shape),
        offset=data_start + begin,
        num_bytes=end - begin,
    )


def _check_layout(tensors: Iterable[StoredTensor], data_start: int, size: int, file: Path) -> None:
    """Refuses tensors beyond the file, with gaps or bytes in common, or of another size than they say."""
    end = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset + tensor.num_bytes > size:
            raise InputError(
                f"{file}: truncated: tensor {tensor.name} ends at byte {tensor.offset + tensor.num_bytes} "
                f"of {size}"
            )
        if tensor.num_bytes != tensor.expected_bytes:
            raise InputError(
                f"{file}: tensor {tensor.name} takes {tensor.num_bytes} bytes; expected "
                f"{tensor.expected_bytes} for {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.offset != end:
            raise InputError(
                f"{file}: tensor {tensor.name} begins at byte {tensor.offset}; expected {end}: tensors lie "
                "back to back"
            )
        end += tensor.num_bytes
    if end != size:
        raise InputError(f"{file}: {size - end} bytes after the last tensor; expected none")
