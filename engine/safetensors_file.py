"""Where each tensor lies in safetensors files, and how its bytes are read. Knows nothing of models.

Format (source: the safetensors README): 8 bytes little-endian header length, a JSON header giving for each
tensor dtype, shape and byte range, then the bytes. Reading goes through `os.preadv` into buffers the caller
owns, so that a layer costs no allocation and no memory map.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from strata.engine.types import InputError

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER_BYTES = 100 << 20


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
            InputError: a dtype that is not a plain floating-point one.
        """
        if self.dtype not in TORCH_DTYPES:
            known = ", ".join(TORCH_DTYPES)
            raise InputError(
                f"{self.file}: tensor {self.name} has dtype {self.dtype}; expected one of {known}"
            )
        return TORCH_DTYPES[self.dtype]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Tensors of one safetensors file by name.

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
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise InputError(f"{file}: not a safetensors file (header is not JSON: {error})") from None
    try:
        tensors = {
            name: _stored_tensor(file, name, entry, 8 + length)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: not a safetensors file (its header lacks {error})") from None
    for tensor in tensors.values():
        end = tensor.offset + tensor.num_bytes
        if end > size:
            raise InputError(f"{file}: truncated: tensor {tensor.name} ends at byte {end} of {size}")
    return tensors


def _stored_tensor(file: Path, name: str, entry: dict, data_start: int) -> StoredTensor:
    begin, end = (int(bound) for bound in entry["data_offsets"])
    return StoredTensor(
        name=name,
        file=file,
        dtype=str(entry["dtype"]),
        shape=tuple(int(size) for size in entry["shape"]),
        offset=data_start + begin,
        num_bytes=end - begin,
    )


class TensorReader:
    """Reads stored tensors into buffers, keeping files open, and counts the bytes; any thread may call it."""

    def __init__(self) -> None:
        self.num_bytes_read = 0
        self._lock = threading.Lock()
        self._descriptors: dict[Path, int] = {}

    def read_into(self, tensor: StoredTensor, buffer: torch.Tensor, first_byte: int = 0) -> None:
        """Fills a uint8 buffer with the tensor's bytes from `first_byte` on.

        Raises:
            InputError: the file ends early.
        """
        view = buffer.numpy().data
        offset, done = tensor.offset + first_byte, 0
        while done < len(view):
            count = os.preadv(self._descriptor(tensor.file), [view[done:]], offset + done)
            if count == 0:
                raise InputError(f"{tensor.file}: truncated while reading tensor {tensor.name}")
            done += count
        with self._lock:
            self.num_bytes_read += done

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """The whole tensor in its stored dtype, in memory of its own."""
        buffer = torch.empty(tensor.num_bytes, dtype=torch.uint8)
        self.read_into(tensor, buffer)
        return buffer.view(tensor.torch_dtype).view(tensor.shape)

    def read_rows(self, tensor: StoredTensor, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) of a matrix in its stored dtype."""
        row_bytes = tensor.num_bytes // tensor.shape[0]
        buffer = torch.empty((last - first) * row_bytes, dtype=torch.uint8)
        self.read_into(tensor, buffer, first * row_bytes)
        return buffer.view(tensor.torch_dtype).view(last - first, *tensor.shape[1:])

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(file, os.O_RDONLY)
            return self._descriptors[file]
