"""Where hidden states wait between layers: on the device, in RAM, or in a file. Knows nothing of layers.

Rows are numbered as the lane computes them. A store is [num_rows, D] in the compute dtype. On CUDA the RAM
store is pinned and its copies are queued on the current stream, which orders a write before the next read of
the same rows; whoever closes it uses that stream.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

import torch

from strata.engine.plan.overrides import StoreKind
from strata.engine.sweep.pinned import HostMemory


@dataclass(frozen=True, kw_only=True)
class StoreShape:
    """What a store holds: rows of a width in a dtype, for one device."""

    num_rows: int
    width: int
    dtype: torch.dtype
    device: torch.device


class HiddenStore(Protocol):
    """Rows of hidden states by position."""

    def read(self, first: int, count: int) -> torch.Tensor:
        """Rows [first, first + count) on the device; may be a view."""

    def write(self, first: int, rows: torch.Tensor) -> None:
        """Puts rows at `first`."""

    def close(self) -> None:
        """Gives the memory or the file back."""


class MemoryStore:
    """Rows on the device, or in host RAM (pinned when the device is a GPU)."""

    def __init__(self, shape: StoreShape, *, on_host: bool) -> None:
        self._device = shape.device
        size = (shape.num_rows, shape.width)
        self._memory = HostMemory(size, shape.dtype, shape.device) if on_host else None
        self._rows = (
            torch.empty(size, dtype=shape.dtype, device=shape.device)
            if self._memory is None
            else self._memory.tensor
        )

    def read(self, first: int, count: int) -> torch.Tensor:
        """Rows on the device; a view when they are there already."""
        return self._rows[first : first + count].to(self._device, non_blocking=True)

    def write(self, first: int, rows: torch.Tensor) -> None:
        """Copies rows in."""
        self._rows[first : first + len(rows)].copy_(rows, non_blocking=True)

    def close(self) -> None:
        """Frees the memory, once copies from and to it have ended."""
        self._rows = torch.empty(0)
        if self._memory is not None:
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            self._memory.close()


class DiskStore:
    """Rows in an unnamed temporary file, which vanishes with the process.

    Raises:
        OSError: the disk is full, naming the folder.
    """

    def __init__(self, shape: StoreShape, folder: Path) -> None:
        self._width, self._dtype, self._device = shape.width, shape.dtype, shape.device
        self._row_bytes = shape.width * shape.dtype.itemsize
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (closed by close())
        size = max(1, shape.num_rows * self._row_bytes)
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            self._file.close()
            reason = f"{error.strerror}: no room for {size:,} bytes of hidden states (--hidden-store disk)"
            raise OSError(error.errno, reason, str(folder)) from None

    def read(self, first: int, count: int) -> torch.Tensor:
        """Reads rows into fresh memory on the device."""
        rows = torch.empty(count, self._width, dtype=self._dtype)
        view, done = rows.view(torch.uint8).numpy().data.cast("B"), 0
        while done < len(view):
            done += os.preadv(self._file.fileno(), [view[done:]], first * self._row_bytes + done)
        return rows.to(self._device)

    def write(self, first: int, rows: torch.Tensor) -> None:
        """Writes rows through the page cache."""
        view, done = rows.contiguous().cpu().view(torch.uint8).numpy().data.cast("B"), 0
        while done < len(view):
            done += os.pwrite(self._file.fileno(), view[done:], first * self._row_bytes + done)

    def close(self) -> None:
        """Removes the file."""
        self._file.close()


class TimedStore:
    """A store whose reads and writes are timed on the host.

    Attributes:
        seconds: that they have taken so far.
    """

    def __init__(self, store: HiddenStore) -> None:
        self._store = store
        self.seconds = 0.0

    def read(self, first: int, count: int) -> torch.Tensor:
        """As the store does."""
        started = perf_counter()
        rows = self._store.read(first, count)
        self.seconds += perf_counter() - started
        return rows

    def write(self, first: int, rows: torch.Tensor) -> None:
        """As the store does."""
        started = perf_counter()
        self._store.write(first, rows)
        self.seconds += perf_counter() - started

    def close(self) -> None:
        """As the store does."""
        self._store.close()


def make_store(kind: StoreKind, shape: StoreShape, folder: Path) -> HiddenStore:
    """A store of the kind the plan says; `folder` is where a disk store's file goes."""
    if kind == "disk":
        return DiskStore(shape, folder)
    return MemoryStore(shape, on_host=kind == "ram")
