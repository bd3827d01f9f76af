"""Times a disk, a hidden store on it, copies, and what reading costs a computation beside it."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from time import perf_counter

import torch

from strata.engine.machine.measure import measure_disk_rate
from strata.engine.sweep.hidden_store import DiskStore, StoreShape
from strata.scripts.bench.timing import least_seconds

FILE_BYTES = 256 << 20
COPY_BYTES = 128 << 20
STORE_ROWS, STORE_WIDTH = 4096, 4096


def measure_disks(folder: Path) -> tuple[float, float]:
    """Bytes a second read from the folder's disk, and those of a hidden store there, written or read."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        _write_random(Path(file.name))
        disk = measure_disk_rate(Path(file.name), FILE_BYTES)
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    shape = StoreShape(num_rows=STORE_ROWS, width=STORE_WIDTH, dtype=dtype, device=cpu)
    store, rows = DiskStore(shape, folder), torch.zeros(STORE_ROWS, STORE_WIDTH, dtype=dtype)

    def there_and_back() -> None:
        for first in range(0, STORE_ROWS, 512):
            store.write(first, rows[first : first + 512])
            store.read(first, 512)

    seconds = least_seconds(there_and_back, cpu, at_least_s=0.5)
    store.close()
    return disk, 2 * rows.nbytes / seconds


def measure_copies(device: torch.device) -> float:
    """Bytes a second from RAM (pinned, when to a GPU) to a device."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty_like(source, device=device, pin_memory=False)
    return COPY_BYTES / least_seconds(lambda: target.copy_(source), device, at_least_s=0.5)


def measure_interference(folder: Path, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Seconds of computing in a dtype that a byte read in another thread costs, on CPU."""
    a, b = torch.randn(512, 2048).to(dtype), torch.randn(4096, 2048).to(dtype)

    def count_gemms(until_s: float) -> float:
        started, count = perf_counter(), 0
        while perf_counter() - started < until_s:
            torch.nn.functional.linear(a, b)
            count += 1
        return count / (perf_counter() - started)

    num_read, stop = [0], threading.Event()
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        _write_random(Path(file.name))
        alone = count_gemms(seconds)
        reader = threading.Thread(target=_read_until, args=(Path(file.name), stop, num_read))
        started = perf_counter()
        reader.start()
        together = count_gemms(seconds)
        stop.set()
        reader.join()
        read_per_s = num_read[0] / (perf_counter() - started)
    return max(0.0, 1 - together / alone) / read_per_s


def _write_random(path: Path) -> None:
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(FILE_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _read_until(path: Path, stop: threading.Event, num_read: list[int]) -> None:
    buffer = bytearray(8 << 20)
    while not stop.is_set():
        with path.open("rb", buffering=0) as file:
            while not stop.is_set() and (count := file.readinto(buffer)):
                num_read[0] += count
