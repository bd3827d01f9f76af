"""Where the bytes of a file come from: the file itself, or the file at the pace of a slow mount.

A source fills memory the caller owns. Sources wrap one another (see also `read_cache`), and any thread may
call them. Knows nothing of tensors.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Protocol

from strata.engine.types import InputError

CHUNKS_PER_S = 64
"""Pieces a throttled read is cut into: progress is smooth, and the wake-ups cost nothing that shows."""

MAX_CATCH_UP_S = 0.01
"""A throttled reader that is late by less overslept and may make up for it; later than that, it was idle."""


class TruncatedFileError(InputError):
    """A file ends before the bytes asked for."""


class ByteSource(Protocol):
    """Bytes of files by offset."""

    def read_at(self, file: Path, offset: int, view: memoryview, *, keep: bool = True) -> None:
        """Fills the whole view with the bytes of `file` from `offset` on.

        Args:
            file: which file.
            offset: bytes from the start of the file.
            view: one-dimensional, writable, contiguous, one byte an element; its length says how many bytes.
            keep: False says that these bytes will not be asked for again, so that a cache lets them pass.

        Raises:
            TruncatedFileError: the file ends before.
            OSError: the system refuses.
        """

    def close(self) -> None:
        """Gives back what the source holds open; a later read opens it again."""


class FileSource:
    """The files themselves, each opened once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[Path, int] = {}

    def read_at(self, file: Path, offset: int, view: memoryview, *, keep: bool = True) -> None:
        """See ByteSource; without allocation and without a memory map."""
        num_bytes = fill_from(self._descriptor(file), offset, view)
        if num_bytes < len(view):
            raise TruncatedFileError(
                f"{file}: truncated: ends at byte {offset + num_bytes}, expected {offset + len(view)} or more"
            )

    def close(self) -> None:
        """Closes the files."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(file, os.O_RDONLY)
            return self._descriptors[file]


def fill_from(descriptor: int, offset: int, view: memoryview) -> int:
    """Fills the view from an open file and returns the number of bytes, fewer than its length at the end."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


class ThrottledSource:
    """Another source at no more than a given rate, summed over all threads: plays a slow network mount.

    Every piece gets a slot of its length / rate on one time line and is given out when its slot has passed,
    so bytes never run ahead of the rate counted from the end of the last pause. One second taken anywhere
    may hold up to a piece and MAX_CATCH_UP_S more.

    Args:
        inner: where the bytes come from.
        bytes_per_s: the rate.

    Raises:
        InputError: a rate that is not positive.
    """

    def __init__(self, inner: ByteSource, bytes_per_s: float) -> None:
        if not bytes_per_s > 0:
            raise InputError(f"a throttled source got {bytes_per_s} bytes a second; expected more than 0")
        self._inner = inner
        self._bytes_per_s = bytes_per_s
        self._chunk_bytes = max(1, int(bytes_per_s / CHUNKS_PER_S))
        self._lock = threading.Lock()
        self._slots_end = float("-inf")

    def read_at(self, file: Path, offset: int, view: memoryview, *, keep: bool = True) -> None:
        """See ByteSource; the inner source is asked for pieces of 1 / CHUNKS_PER_S s."""
        for start in range(0, len(view), self._chunk_bytes):
            piece = view[start : start + self._chunk_bytes]
            slot_end = self._take_slot(len(piece))
            self._inner.read_at(file, offset + start, piece, keep=keep)
            _sleep_until(slot_end)

    def close(self) -> None:
        """Closes the inner source."""
        self._inner.close()

    def _take_slot(self, num_bytes: int) -> float:
        """When the bytes may be given out, on the clock of time.monotonic."""
        with self._lock:
            now = time.monotonic()
            is_late = now - self._slots_end > MAX_CATCH_UP_S
            self._slots_end = (now if is_late else self._slots_end) + num_bytes / self._bytes_per_s
            return self._slots_end


def _sleep_until(moment: float) -> None:
    while (left := moment - time.monotonic()) > 0:
        time.sleep(left)
