"""Measures this machine in a fraction of a second: its GEMM rate and its disk."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from strata.engine.machine.rates import (
    NOMINAL_HOST_TO_DEVICE,
    TWO_LANES_GAIN,
    LinearKind,
    MachineRates,
)


def measure_quickly(
    devices: tuple[str, ...], dtype: torch.dtype, width: int, file: Path, linear: LinearKind
) -> MachineRates:
    """Measures the GEMM rate (a fifth of a second), a card's memory, the disk (up to 64 MiB, uncached)."""
    on_cpu = devices[0] == "cpu"
    kind = torch.int8 if linear == "int8" else dtype
    rate = measure_gemm_rate(torch.device(devices[0]), kind, max(width, SMALLEST_GEMM_WIDTH))
    return MachineRates(
        gemm_flop_per_s=rate,
        disk_bytes_per_s=measure_disk_rate(file),
        host_to_device_bytes_per_s=None if on_cpu else NOMINAL_HOST_TO_DEVICE,
        memory_bytes_per_s=None if on_cpu else measure_memory_rate(torch.device(devices[0])),
        two_lanes_gain=usual_lanes_gain() if on_cpu else None,
    ).shared_by(devices.count("cpu") or 1)


def usual_lanes_gain() -> float | None:
    """What two lanes gain on this machine's CPU where nobody has measured it; None: not known."""
    return TWO_LANES_GAIN if torch.get_num_threads() == 2 else None


def measure_gemm_rate(device: torch.device, dtype: torch.dtype, width: int, seconds: float = 0.2) -> float:
    """Best FLOP/s of [rows, width] times [2 width, width] transposed; int8 sums in int32."""
    return GemmProduct.of_width(device, dtype, width, 2 * width).best_flop_per_s(seconds)


def measure_memory_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of the fastest of some copies of 256 MiB within a card's memory."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), list[float]()
    for _ in range(COPIES):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * COPIED_BYTES / min(seconds)


@dataclass(frozen=True, kw_only=True, eq=False)
class GemmProduct:
    """Two matrices to multiply, [rows, width] and [outputs, width], as a decoder layer would."""

    hidden: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of_width(cls, device: torch.device, dtype: torch.dtype, width: int, outputs: int) -> GemmProduct:
        """As many rows as a micro-batch usually has on the device."""
        rows = 512 if device.type == "cpu" else 4096
        return cls(hidden=_ramp(rows, width, device, dtype), weight=_ramp(outputs, width, device, dtype))

    @property
    def flops(self) -> int:
        """Of one product."""
        return 2 * len(self.hidden) * self.weight.numel()

    def best_flop_per_s(self, seconds: float) -> float:
        """Best of the calls within some seconds."""
        return self.flops / min(self.call_seconds(seconds))

    def call_seconds(self, seconds: float) -> list[float]:
        """Seconds of every call within some seconds, one at least, after one that does not count."""
        multiply = _multiply_int8 if self.hidden.dtype == torch.int8 else _multiply
        self._wait()  # which also gives a new thread its CUDA context: cuBLAS warns where there is none
        multiply(self.hidden, self.weight)
        found: list[float] = []
        deadline = time.perf_counter() + seconds
        while not found or time.perf_counter() < deadline:
            self._wait()
            started = time.perf_counter()
            multiply(self.hidden, self.weight)
            self._wait()
            found.append(time.perf_counter() - started)
        return found

    def _wait(self) -> None:
        if self.hidden.device.type == "cuda":
            torch.cuda.synchronize(self.hidden.device)


def _ramp(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Numbers between -3 and 3, which are made faster than random ones."""
    return torch.linspace(-3, 3, rows * columns, device=device).view(rows, columns).to(dtype)


def measure_disk_rate(file: Path, max_bytes: int = 64 << 20) -> float:
    """Bytes a second read from the start of a file, after the system was told to forget its pages."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, max_bytes, os.POSIX_FADV_DONTNEED)
        buffer, done = bytearray(8 << 20), 0
        started = time.perf_counter()
        while done < max_bytes:
            count = os.preadv(descriptor, [buffer], done)
            if count == 0:
                break
            done += count
        return max(done, 1) / (time.perf_counter() - started)
    finally:
        os.close(descriptor)


def _multiply(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(hidden, weight)


def _multiply_int8(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(hidden, weight.t())


COPIED_BYTES, COPIES = 256 << 20, 5
SMALLEST_GEMM_WIDTH = 1024
"""Narrower GEMMs would measure the cost of a call, not the machine."""
