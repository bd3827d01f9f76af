"""How much memory a run takes: resident set of the process beyond where it began, and CUDA's own peak."""

from __future__ import annotations

import threading

import psutil
import torch


class PeakMemory:
    """Context manager that samples the process's resident set every few milliseconds.

    Attributes:
        baseline_bytes: resident set when the block began: interpreter and libraries.
        peak_bytes: the largest resident set seen in the block.
    """

    def __init__(self, interval_s: float = 0.01) -> None:
        self.baseline_bytes = 0
        self.peak_bytes = 0
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self.baseline_bytes = self.peak_bytes = psutil.Process().memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, psutil.Process().memory_info().rss)

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._done.wait(self._interval_s):
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)


def reset_device_peaks(names: tuple[str, ...]) -> None:
    """Begins a new peak on each CUDA device; the planner has initialised CUDA by then."""
    for name in _cuda_here(names):
        torch.cuda.reset_peak_memory_stats(name)


def device_peaks(names: tuple[str, ...]) -> dict[str, int]:
    """Peak bytes allocated on each CUDA device since the reset."""
    return {name: torch.cuda.max_memory_allocated(name) for name in _cuda_here(names)}


def _cuda_here(names: tuple[str, ...]) -> list[str]:
    """CUDA devices of this machine; those that a job has elsewhere, on a cluster, cannot be asked."""
    is_here = torch.cuda.is_available()
    return [name for name in names if is_here and name != "cpu"]
