"""Measures what the machine can do at best: GEMM rate of a device, read rate of a disk. Knows no models.

Legend: an (M, K, N) GEMM multiplies [M, K] activations by [K, N] weights in 2*M*K*N FLOPs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from strata.scripts.bench.timing import MIN_REPEATS, Stopwatch

if TYPE_CHECKING:
    import torch

NUM_WARMUPS = 2
READ_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class GemmShapeRate:
    """What one (M, K, N) reached: the median of its repeats, in FLOP/s."""

    m: int
    k: int
    n: int
    num_repeats: int
    median_flop_per_s: float


@dataclass(frozen=True, kw_only=True)
class GemmRate:
    """The GEMM rates of one device in one dtype."""

    dtype: str
    device: str
    per_shape: tuple[GemmShapeRate, ...]

    @property
    def best_flop_per_s(self) -> float:
        """The roofline: the highest rate that any shape sustains (the largest of the medians)."""
        return max(rate.median_flop_per_s for rate in self.per_shape)


def measure_gemm_rate(
    dtype: torch.dtype,
    device: torch.device | str,
    shapes: Sequence[tuple[int, int, int]],
    seconds: float = 2.0,
) -> GemmRate:
    """Time `torch.nn.functional.linear` over layer-shaped GEMMs.

    Args:
        dtype: Of activations and weights.
        device: Where to run.
        shapes: (M, K, N) triples; see `flops.layer_gemm_shapes`.
        seconds: How long to repeat each shape; at least three repeats, after two warm-up calls.

    Raises:
        ValueError: No shapes are given.
    """
    if not shapes:
        raise ValueError("shapes is empty: expected at least one (M, K, N)")
    rates = tuple(_measure_shape(dtype, device, shape, seconds) for shape in shapes)
    return GemmRate(dtype=str(dtype).removeprefix("torch."), device=str(device), per_shape=rates)


def measure_disk_rate(path: Path, max_bytes: int) -> float:
    """Reads a file, or a folder's files in name order, from the disk itself, one after another, in bytes/s.

    The page cache of what is read is dropped first and again at the end. One reader, 16 MiB requests: what
    a disk gives a plain sequential read, not what many readers at once could draw from it.

    Args:
        path: A file or a folder of at least `max_bytes` (fewer are read when it holds fewer).
        max_bytes: Where to stop.

    Raises:
        ValueError: There is nothing to read.
    """
    files = _list_files([path])
    drop_page_cache(files)
    num_read = 0
    start = perf_counter()
    for file in files:
        num_read += _read_through(file, max_bytes - num_read)
    seconds = perf_counter() - start
    if num_read == 0:
        raise ValueError(f"{path}: no bytes to read (max_bytes {max_bytes})")
    drop_page_cache(files)
    return num_read / seconds


def drop_page_cache(paths: Iterable[Path]) -> None:
    """Have the system forget its copy of these files (folders: all files below), so that reads hit the disk.

    Dirty pages are written out first, because the kernel keeps those. Pages that a process has mapped stay.

    Raises:
        RuntimeError: The system has no `posix_fadvise` (macOS, Windows).
    """
    if not hasattr(os, "posix_fadvise"):
        raise RuntimeError("the page cache cannot be dropped here: this system has no posix_fadvise")
    for file in _list_files(paths):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _measure_shape(
    dtype: torch.dtype, device: torch.device | str, shape: tuple[int, int, int], seconds: float
) -> GemmShapeRate:
    import torch
    from torch.nn.functional import linear

    m, k, n = shape
    x_MK = torch.randn(m, k, device=device).to(dtype)
    weight_NK = torch.randn(n, k, device=device).to(dtype)
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(NUM_WARMUPS):
            linear(x_MK, weight_NK)
        while len(times) < MIN_REPEATS or sum(times) < seconds:
            with Stopwatch(device) as watch:
                linear(x_MK, weight_NK)
            times.append(watch.seconds)
    rate = 2 * m * k * n / median(times)
    return GemmShapeRate(m=m, k=k, n=n, num_repeats=len(times), median_flop_per_s=rate)


def _list_files(paths: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [file for file in found if not file.is_dir()]
    return files


def _read_through(file: Path, max_bytes: int) -> int:
    buffer = memoryview(bytearray(READ_BYTES))
    num_read = 0
    with file.open("rb", buffering=0) as stream:
        while num_read < max_bytes:
            count = stream.readinto(buffer[: max_bytes - num_read])
            if not count:
                break
            num_read += count
    return num_read
