"""Where each tensor lies in safetensors files, and how its bytes are read. Knows nothing of models.

Format (source: the safetensors README): 8 bytes little-endian header length, a JSON header giving for each
tensor dtype, shape and byte range, then the bytes. Reading goes through a byte source into buffers the caller
owns, so that a layer costs no allocation and no memory map.
"""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from strata.engine.byte_sources import ByteSource, FileSource, TruncatedFileError
from strata.engine.checksums import Checksums, digest_of, start_digest
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
VERIFIED_PIECE_BYTES = 8 << 20


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


class TensorReader:
    """Reads stored tensors into buffers and counts the bytes; any thread may call it.

    With checksums a tensor is compared with its own the first time it is read whole; a tensor that is only
    read in parts needs `verify`.

    Args:
        source: where the bytes come from; the files themselves when absent.
        checksums: what the bytes must be; None takes them as they are.
    """

    def __init__(self, source: ByteSource | None = None, checksums: Checksums | None = None) -> None:
        self.num_bytes_read = 0
        self.num_bytes_verified = 0
        self._source = FileSource() if source is None else source
        self._checksums = checksums
        self._verified: set[tuple[Path, str]] = set()
        self._lock = threading.Lock()

    def read_into(self, tensor: StoredTensor, buffer: torch.Tensor, first_byte: int = 0) -> None:
        """Fills a uint8 buffer with the tensor's bytes from `first_byte` on.

        Raises:
            InputError: the file ends early, or the whole tensor was read and is not what its checksum says.
        """
        view = buffer.numpy().data
        self._fill(tensor, first_byte, view)
        with self._lock:
            self.num_bytes_read += len(view)
        is_whole = first_byte == 0 and len(view) == tensor.num_bytes
        if self._checksums is not None and is_whole and not self._is_verified(tensor):
            self._check(self._checksums, tensor, digest_of(view))

    def verify(self, tensor: StoredTensor) -> None:
        """Reads a tensor piece by piece, past any cache, and compares it with its checksum, once.

        The bytes are counted in `num_bytes_verified`, not in `num_bytes_read`. Takes 8 MiB of memory.

        Raises:
            InputError: the file ends early, or the tensor is not what its checksum says.
        """
        assert self._checksums is not None, "only a reader with checksums can verify"
        if self._is_verified(tensor):
            return
        digest = start_digest()
        piece = memoryview(bytearray(min(tensor.num_bytes, VERIFIED_PIECE_BYTES)))
        for first_byte in range(0, tensor.num_bytes, VERIFIED_PIECE_BYTES):
            view = piece[: tensor.num_bytes - first_byte]
            self._fill(tensor, first_byte, view, keep=False)
            digest.update(view)
        with self._lock:
            self.num_bytes_verified += tensor.num_bytes
        self._check(self._checksums, tensor, digest.hexdigest())

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
        """Closes the source."""
        self._source.close()

    def _fill(self, tensor: StoredTensor, first_byte: int, view: memoryview, *, keep: bool = True) -> None:
        try:
            self._source.read_at(tensor.file, tensor.offset + first_byte, view, keep=keep)
        except TruncatedFileError:
            raise InputError(f"{tensor.file}: truncated while reading tensor {tensor.name}") from None

    def _is_verified(self, tensor: StoredTensor) -> bool:
        with self._lock:
            return (tensor.file, tensor.name) in self._verified

    def _check(self, checksums: Checksums, tensor: StoredTensor, digest: str) -> None:
        checksums.check(tensor.file, tensor.name, digest)
        with self._lock:
            self._verified.add((tensor.file, tensor.name))
