"""Tensors one after another in a file, each with a checksum: written and read in parts.

Knows nothing of what the tensors are.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Self

import torch

from strata.engine.json_files import Schema

PART_ROWS = 1024


class Piece(Schema):
    """What is known of a tensor in the file.

    Attributes:
        name: what it is.
        dtype: torch's name of it, such as bfloat16.
        shape: sizes of its axes.
        crc32: of its bytes.
    """

    name: str
    dtype: str
    shape: list[int]
    crc32: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype), self.dtype
        return found

    @property
    def row_bytes(self) -> int:
        """Bytes a row, a row being all behind the first axis."""
        return torch.Size(self.shape[1:]).numel() * self.torch_dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.shape[0] * self.row_bytes


class PieceWriter:
    """Writes tensors to a new file; `pieces` lists them. Safe on disk when closed without an error."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.pieces: list[Piece] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def add(self, name: str, parts: Iterable[torch.Tensor]) -> None:
        """Appends a tensor given as one or more parts along its first axis, on whatever device.

        Raises:
            OSError: the disk is full.
        """
        num_rows, crc32, part = 0, 0, torch.empty(0)
        for part in parts:
            content = as_bytes(part.contiguous().cpu())
            self._file.write(content)
            num_rows, crc32 = num_rows + len(part), zlib.crc32(content, crc32)
        dtype = str(part.dtype).removeprefix("torch.")
        self.pieces.append(
            Piece(name=name, dtype=dtype, shape=[num_rows, *part.shape[1:]], crc32=crc32),
        )


def is_whole(path: Path, pieces: Sequence[Piece]) -> bool:
    """Whether a file holds these tensors and nothing else, byte for byte as they were written."""
    if not path.is_file() or path.stat().st_size != sum(piece.num_bytes for piece in pieces):
        return False
    with path.open("rb") as file:
        return all(_crc32_of(file, piece) == piece.crc32 for piece in pieces)


def read_pieces(path: Path, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Iterator[torch.Tensor]]]:
    """Each tensor with its parts of `PART_ROWS` rows; parts that are not asked for are passed over."""
    with path.open("rb") as file:
        start = 0
        for piece in pieces:
            file.seek(start)
            yield piece, _read_parts(file, piece)
            start += piece.num_bytes


def read_whole(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The parts of one tensor, joined."""
    return torch.cat(list(parts))


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host, not copied."""
    return tensor.flatten().view(torch.uint8).numpy().data


def _read_parts(file: BufferedReader, piece: Piece) -> Iterator[torch.Tensor]:
    for first in range(0, piece.shape[0], PART_ROWS):
        num_rows = min(PART_ROWS, piece.shape[0] - first)
        part = torch.empty(num_rows, *piece.shape[1:], dtype=piece.torch_dtype)
        file.readinto(as_bytes(part))
        yield part


def _crc32_of(file: BufferedReader, piece: Piece) -> int:
    crc32 = 0
    for part in _read_parts(file, piece):
        crc32 = zlib.crc32(as_bytes(part), crc32)
    return crc32
