"""Where each tensor lies in safetensors files, and how its bytes are read. Knows nothing of models.

Format (source: the safetensors README): 8 bytes little-endian header length, a JSON header giving for each
tensor dtype, shape and byte range, then the bytes. Reading goes through a byte source into buffers the caller
owns, so that a layer costs no allocation and no memory map.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

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
            InputError: a dtype that is not known here.
        """
        return self._dtype_in(TORCH_DTYPES)

    @property
    def expected_bytes(self) -> int:
        """Bytes that dtype and shape call for."""
        return math.prod(self.shape) * self.torch_dtype.itemsize

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
        if tensor.dtype in TORCH_DTYPES and tensor.num_bytes != tensor.expected_bytes:
            raise InputError(
                f"{file}: tensor {tensor.name} takes {tensor.num_bytes} bytes; expected "
                f"{tensor.expected_bytes} for {tensor.dtype} {list(tensor.shape)}"
            )
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
