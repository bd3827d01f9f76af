"""What the machine offers: devices, memory budgets, the dtype that is fast, and quickly measured rates."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from strata.engine.types import InputError

GIB = 1 << 30
SHARE_OF_FREE_MEMORY = 0.8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALLEST_GEMM_WIDTH = 1024
"""Narrower GEMMs would measure the cost of a call, not the machine."""
NOMINAL_HOST_TO_DEVICE = 12e9
"""Bytes a second over PCIe 3.0 x16 as usually reached with pinned memory; used in predictions only."""


@dataclass(frozen=True, kw_only=True)
class MachineRates:
    """Measured rates: GEMM FLOP/s of one worker's device, disk and host-to-device bytes/s."""

    gemm_flop_per_s: float
    disk_bytes_per_s: float
    host_to_device_bytes_per_s: float | None = None


def resolve_devices(setting: str) -> tuple[str, ...]:
    """Turns `--devices` into device names, one a worker.

    Raises:
        InputError: an unknown or absent device.
    """
    if setting == "auto":
        count = torch.cuda.device_count()
        return tuple(f"cuda:{index}" for index in range(count)) or ("cpu",)
    names = tuple(name.strip() for name in setting.split(","))
    for name in names:
        if name == "cpu":
            continue
        index = name.removeprefix("cuda:")
        if not name.startswith("cuda:") or not index.isdigit():
            raise InputError(
                f"--devices: {name!r} is unknown; expected auto, cpu, or a list such as cuda:0,cuda:1"
            )
        if int(index) >= torch.cuda.device_count():
            raise InputError(
                f"--devices: {name} is not there; this machine has {torch.cuda.device_count()} CUDA devices"
            )
    if len({name.split(":")[0] for name in names}) > 1:
        raise InputError(f"--devices: {setting!r} mixes CPU and CUDA; expected one kind")
    return names


def resolve_dtype(setting: str, stored: torch.dtype, devices: tuple[str, ...]) -> torch.dtype:
    """Turns `--dtype` into a compute dtype: the checkpoint's own where the devices compute it natively.

    A T4 says that it supports bfloat16 but emulates it, so compute capability decides.
    """
    if setting != "auto":
        return DTYPES[setting]
    if stored not in (torch.float16, torch.bfloat16):
        return torch.float32
    if devices[0] == "cpu":
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() and "avx512_bf16" in cpu_flags()
        return torch.bfloat16 if fast else torch.float32
    oldest = min(torch.cuda.get_device_capability(name) for name in devices)
    return stored if oldest >= (8, 0) else torch.float16


def cpu_flags() -> str:
    """The CPU's feature flags as Linux lists them; empty elsewhere."""
    listing = Path("/proc/cpuinfo")
    return listing.read_text() if listing.is_file() else ""


def device_budget_bytes(devices: tuple[str, ...], memory_gib: float | None) -> int:
    """Bytes that weights and activations may take on each device."""
    if memory_gib is not None:
        return int(memory_gib * GIB)
    if devices[0] == "cpu":
        return int(psutil.virtual_memory().available * SHARE_OF_FREE_MEMORY)
    free = min(torch.cuda.mem_get_info(name)[0] for name in devices)
    return int(free * SHARE_OF_FREE_MEMORY)


def host_budget_bytes(host_memory_gib: float | None) -> int:
    """Bytes that a run may take in host RAM."""
    if host_memory_gib is not None:
        return int(host_memory_gib * GIB)
    return int(psutil.virtual_memory().available * SHARE_OF_FREE_MEMORY)


def measure_rates(devices: tuple[str, ...], dtype: torch.dtype, width: int, file: Path) -> MachineRates:
    """Measures the GEMM rate (a fifth of a second) and the disk rate (up to 64 MiB, cache dropped)."""
    rate = _gemm_rate(torch.device(devices[0]), dtype, max(width, SMALLEST_GEMM_WIDTH))
    workers_share = devices.count("cpu") or 1
    return MachineRates(
        gemm_flop_per_s=rate / workers_share,
        disk_bytes_per_s=_disk_rate(file),
        host_to_device_bytes_per_s=None if devices[0] == "cpu" else NOMINAL_HOST_TO_DEVICE,
    )


def _gemm_rate(device: torch.device, dtype: torch.dtype, width: int, seconds: float = 0.2) -> float:
    rows = 512 if device.type == "cpu" else 4096
    hidden = torch.randn(rows, width, device=device).to(dtype)
    weight = torch.randn(2 * width, width, device=device).to(dtype)
    torch.nn.functional.linear(hidden, weight)
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        torch.nn.functional.linear(hidden, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * rows * 2 * width * width / (time.perf_counter() - started))
    return best


def _disk_rate(file: Path, max_bytes: int = 64 << 20) -> float:
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
