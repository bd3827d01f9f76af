"""Reads stored tensors through a byte source, counts the bytes and checks them on the way."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from strata.engine.types import InputError
from strata.engine.weights.byte_sources import ByteSource, FileSource, TruncatedFileError
from strata.engine.weights.checksums import Checksums, digest_of, start_digest
from strata.engine.weights.safetensors_file import StoredTensor


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


VERIFIED_PIECE_BYTES = 8 << 20
