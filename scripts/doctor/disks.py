"""How much room a folder's disk has and how fast it is, measured with a few dozen MiB."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from strata.engine.machine.measure import measure_disk_rate

MEASURED_BYTES = 32 << 20
MAX_FILES_LOOKED_AT = 2_000


@dataclass(frozen=True, kw_only=True)
class DiskFacts:
    """A folder's disk.

    Attributes:
        folder: where it was measured.
        free_bytes: room that is left; None for a folder that is not there.
        write_bytes_per_s: until it is on disk; None where nothing may be written.
        read_bytes_per_s: past the page cache; None where there is no file to read.
    """

    folder: Path
    free_bytes: int | None
    write_bytes_per_s: float | None
    read_bytes_per_s: float | None


def measure_folder(folder: Path) -> DiskFacts:
    """Writes and reads a file of 32 MiB that is gone afterwards; where that is not allowed, reads one."""
    if not folder.is_dir():
        return DiskFacts(folder=folder, free_bytes=None, write_bytes_per_s=None, read_bytes_per_s=None)
    free_bytes = shutil.disk_usage(folder).free
    written: float | None
    read: float | None
    try:
        written, read = _write_and_read(folder)
    except OSError:
        written, read = None, _read_largest(folder)
    return DiskFacts(folder=folder, free_bytes=free_bytes, write_bytes_per_s=written, read_bytes_per_s=read)


def _write_and_read(folder: Path) -> tuple[float, float]:
    """Bytes a second of writing and of reading."""
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".strata-doctor-") as file:
        started = time.perf_counter()
        for _ in range(MEASURED_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = MEASURED_BYTES / (time.perf_counter() - started)
        return written, measure_disk_rate(Path(file.name), MEASURED_BYTES)


def _read_largest(folder: Path) -> float | None:
    """Bytes a second of the largest of the first files below a folder."""
    found: list[tuple[int, Path]] = []
    for parent, _, names in os.walk(folder):
        found += [
            (path.stat().st_size, path) for path in (Path(parent, name) for name in names) if path.is_file()
        ]
        if len(found) > MAX_FILES_LOOKED_AT:
            break
    size, path = max(found, default=(0, folder))
    return measure_disk_rate(path, MEASURED_BYTES) if size else None
