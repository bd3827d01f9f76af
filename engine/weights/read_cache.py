"""A read-through cache on a fast local disk for files on a slow mount, which outlives the process.

The unit is a request: the same (file, offset, size) asked for again comes from the cache, so it serves
readers that repeat themselves, such as sweeps. What came first stays: nothing is thrown out when the room is
used up, because with requests in a circle the newest is the one not needed for longest. Layout:

    <folder>/<file name>-<digest of resolved path, size, mtime>.extents/<offset>-<size>

Extents get their name when they are whole, so a killed run leaves none half written. They are not flushed to
disk one by one: the size is what is checked, and checksums see the rest. Removing the folder is always safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from strata.engine.types import InputError
from strata.engine.weights.byte_sources import ByteSource, fill_from

MIN_EXTENT_BYTES = 64 << 10
"""Smaller requests (norms, embedding rows) pass: they would cost a file each and save little."""

RESERVE_BYTES = 1 << 30
TEMPORARY_SUFFIX = ".tmp"
ABANDONED_S = 3600
"""A temporary file untouched for so long belongs to a run that was killed."""

LOG = logging.getLogger(__name__)


class CachedSource:
    """Another source, of which a folder keeps what was read. Threads and processes may share the folder.

    Trouble with the folder ends the caching, never the run: a warning is logged once, `stopped_because` says
    why, and what is there is still read.

    Args:
        inner: the slow source.
        folder: on the fast disk; made when absent.
        reserve_bytes: room to leave free on that disk.
        max_bytes: what the folder may hold, earlier runs included; None for as much as the disk has.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(
        self,
        inner: ByteSource,
        folder: Path,
        reserve_bytes: int = RESERVE_BYTES,
        max_bytes: int | None = None,
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: expected a folder for cached reads ({error.strerror})") from None
        self.num_bytes_from_cache = 0
        self.num_bytes_from_source = 0
        self.num_bytes_kept = 0
        self.stopped_because: str | None = None
        self._inner = inner
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._extent_folders: dict[Path, Path] = {}
        self._held_bytes = _clean_and_measure(folder)

    def read_at(self, file: Path, offset: int, view: memoryview, *, keep: bool = True) -> None:
        """See ByteSource; `keep=False` goes past the cache."""
        if not keep or len(view) < MIN_EXTENT_BYTES:
            self._read_source(file, offset, view, keep)
            return
        extent = self._extent(file, offset, len(view))
        if self._read_extent(extent, view):
            return
        self._read_source(file, offset, view, keep)
        if self.stopped_because is None and self._keep(extent, view):
            _drop_pages(file, offset, len(view))

    def holds(self, file: Path, offset: int, num_bytes: int) -> bool:
        """Whether such a request would come from the cache."""
        with contextlib.suppress(FileNotFoundError):
            return self._extent(file, offset, num_bytes).stat().st_size == num_bytes
        return False

    def cached_bytes(self, file: Path) -> int:
        """Bytes of a file's extents in the folder."""
        return sum(num_bytes for _, num_bytes in self._extents_of(file))

    def close(self) -> None:
        """Closes the inner source; the folder stays."""
        self._inner.close()

    def _read_source(self, file: Path, offset: int, view: memoryview, keep: bool) -> None:
        self._inner.read_at(file, offset, view, keep=keep)
        with self._lock:
            self.num_bytes_from_source += len(view)

    def _read_extent(self, extent: Path, view: memoryview) -> bool:
        try:
            is_read = _fill_from_extent(extent, view)
        except OSError as error:
            self._stop(f"{extent} cannot be read ({error.strerror})")
            return False
        with self._lock:
            self.num_bytes_from_cache += len(view) * is_read
        return is_read

    def _keep(self, extent: Path, view: memoryview) -> bool:
        try:
            if not self._take_room(len(view)):
                return False
            _write_extent(extent, view)
        except OSError as error:
            self._stop(f"{extent} cannot be written ({error.strerror})")
            return False
        with self._lock:
            self.num_bytes_kept += len(view)
        return True

    def _take_room(self, num_bytes: int) -> bool:
        free = shutil.disk_usage(self._folder).free - self._reserve_bytes
        with self._lock:
            fits = self._max_bytes is None or self._held_bytes + num_bytes <= self._max_bytes
            self._held_bytes += num_bytes
        if not fits:
            self._stop(f"it may hold {self._max_bytes:,} bytes and is full")
        elif free < num_bytes:
            self._stop(f"the disk is full but for the {self._reserve_bytes:,} bytes to leave free")
        return fits and free >= num_bytes

    def _stop(self, reason: str) -> None:
        with self._lock:
            is_first = self.stopped_because is None
            self.stopped_because = self.stopped_because or reason
        if is_first:
            LOG.warning("%s: the read cache takes no more: %s", self._folder, reason)

    def _extent(self, file: Path, offset: int, num_bytes: int) -> Path:
        if file not in self._extent_folders:
            self._extent_folders[file] = self._folder / _folder_name(file)
        return self._extent_folders[file] / f"{offset}-{num_bytes}"

    def _extents_of(self, file: Path) -> Iterator[tuple[Path, int]]:
        for path, size in _files_of(self._extent(file, 0, 0).parent):
            if path.name.endswith(f"-{size}"):
                yield path, size


def _folder_name(file: Path) -> str:
    resolved = file.resolve()
    status = resolved.stat()
    key = f"{resolved}\0{status.st_size}\0{status.st_mtime_ns}"
    return f"{resolved.name[:100]}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.extents"


def _fill_from_extent(extent: Path, view: memoryview) -> bool:
    try:
        descriptor = os.open(extent, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        right_size = os.fstat(descriptor).st_size == len(view)
        return right_size and fill_from(descriptor, 0, view) == len(view)
    finally:
        os.close(descriptor)


def _write_extent(extent: Path, view: memoryview) -> None:
    temporary = extent.with_name(f".{extent.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    extent.parent.mkdir(exist_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(view)
        temporary.replace(extent)
    finally:
        # After success there is nothing to remove; a folder that refuses has told its reason already.
        with contextlib.suppress(OSError):
            temporary.unlink()


def _drop_pages(file: Path, offset: int, num_bytes: int) -> None:
    """Lets the system forget a source's pages: their copy in the cache is the one that will be read."""
    # An advice that cannot be given costs memory the system can take back, nothing else.
    with contextlib.suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, offset, num_bytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _clean_and_measure(folder: Path) -> int:
    """Removes what killed runs left half written, and returns the bytes of all extents."""
    held_bytes, abandoned_at = 0, time.time() - ABANDONED_S
    for path, size in (found for extents in folder.glob("*.extents") for found in _files_of(extents)):
        if path.suffix != TEMPORARY_SUFFIX:
            held_bytes += size
            continue
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < abandoned_at:
                path.unlink()
    return held_bytes


def _files_of(folder: Path) -> Iterator[tuple[Path, int]]:
    """Files of a folder with their sizes, none when it is absent; others may add and remove them."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat().st_size
