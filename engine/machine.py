"""What the machine offers: devices, memory budgets, the dtype that is fast, and quickly measured rates."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

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
NOMINAL_HOST_BYTES_PER_S = 8e9
NOMINAL_DECODE_WEIGHTS_PER_S = {"cpu": 0.5e9, "cuda": 30e9}
GEMM_EFFICIENCY = 0.95
"""Share of the measured GEMM rate that a layer's GEMMs reach between the other operations."""
ATTENTION_EFFICIENCY = 0.4
"""Useful attention FLOP/s as a share of the GEMM rate."""
MEASURED_QUICKLY = "measured quickly"


LinearKind = Literal["dense", "int8"]
"""How linear layers are computed: in the compute dtype, or with 8-bit weights and activations."""


@dataclass(frozen=True, kw_only=True)
class LayerRates:
    """What a decoder layer reaches on one worker's device; seconds of a layer are a sum of these parts.

    Attributes:
        linear_flop_per_s: of its matrices.
        attention_flop_per_s: of the two products of attention.
        softmax_scores_per_s: scores (query head, row, key) a second, for all that is not those products.
        elements_per_s: norms, rotary embedding, activation function: (D + F) elements a token.
        weights_bytes_per_s: how fast a micro-batch passes over the layer's weights, beside computing.
        call_s: of a micro-batch, whatever its size.
        masked_keys: keys a row that its tile computes and masks.
    """

    linear_flop_per_s: float
    attention_flop_per_s: float
    softmax_scores_per_s: float = math.inf
    elements_per_s: float = math.inf
    weights_bytes_per_s: float = math.inf
    call_s: float = 0.0
    masked_keys: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in asdict(self).items():
            if not (rate >= 0 if name in ("call_s", "masked_keys") else rate > 0):
                raise ValueError(f"{name} is {rate}; expected a positive number")

    def shared_by(self, num_workers: int) -> LayerRates:
        """What each of several workers reaches that share the device."""
        return LayerRates(
            linear_flop_per_s=self.linear_flop_per_s / num_workers,
            attention_flop_per_s=self.attention_flop_per_s / num_workers,
            softmax_scores_per_s=self.softmax_scores_per_s / num_workers,
            elements_per_s=self.elements_per_s / num_workers,
            weights_bytes_per_s=self.weights_bytes_per_s / num_workers,
            call_s=self.call_s * num_workers,
            masked_keys=self.masked_keys,
        )


@dataclass(frozen=True, kw_only=True)
class MachineRates:
    """What a plan is made with.

    Attributes:
        gemm_flop_per_s: GEMM roofline of one worker's device.
        disk_bytes_per_s: reading the checkpoint.
        host_to_device_bytes_per_s: a link from RAM to a device; None on CPU.
        layer: what a decoder layer reaches; None: shares of the roofline that are usual on CPU.
        cached_bytes_per_s: reading from the second sweep on what a read-through cache keeps.
        cache_bytes: what that cache holds, the first layers first; None for everything.
        store_bytes_per_s: hidden states on disk, written or read; None: as the disk.
        host_bytes_per_s: copying in RAM.
        decode_weights_per_s: weights a second by step, "nf4" and the like, "plain" (another dtype) and
            "quantize" (to 8 bits).
        read_interference: seconds of computing lost a byte read.
        rates_from: where the figures come from.
    """

    gemm_flop_per_s: float
    disk_bytes_per_s: float
    host_to_device_bytes_per_s: float | None = None
    layer: LayerRates | None = None
    cached_bytes_per_s: float | None = None
    cache_bytes: int | None = None
    store_bytes_per_s: float | None = None
    host_bytes_per_s: float = NOMINAL_HOST_BYTES_PER_S
    decode_weights_per_s: Mapping[str, float] = field(default_factory=dict)
    read_interference: float = 0.0
    rates_from: str = MEASURED_QUICKLY

    @property
    def layer_rates(self) -> LayerRates:
        """What a layer reaches: as calibrated, or the usual shares of the roofline."""
        return self.layer or LayerRates(
            linear_flop_per_s=GEMM_EFFICIENCY * self.gemm_flop_per_s,
            attention_flop_per_s=ATTENTION_EFFICIENCY * self.gemm_flop_per_s,
        )

    def decode_s(self, step: str, num_weights: int) -> float:
        """Seconds that a step of decoding takes for so many weights."""
        on_cpu = self.host_to_device_bytes_per_s is None
        usual = NOMINAL_DECODE_WEIGHTS_PER_S["cpu" if on_cpu else "cuda"]
        return num_weights / self.decode_weights_per_s.get(step, usual)


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
    """Turns `--dtype` into a dtype of activations: the checkpoint's own where devices compute it natively.

    With int8 that is the fast 16-bit dtype, whatever the checkpoint's. A T4 says that it supports bfloat16
    but emulates it, so compute capability decides.
    """
    if setting in DTYPES:
        return DTYPES[setting]
    if stored not in (torch.float16, torch.bfloat16):
        if setting != "int8":
            return torch.float32
        stored = torch.bfloat16
    if devices[0] == "cpu":
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() and "avx512_bf16" in cpu_flags()
        return torch.bfloat16 if fast else torch.float32
    oldest = min(torch.cuda.get_device_capability(name) for name in devices)
    return stored if oldest >= (8, 0) else torch.float16


def cpu_name() -> str:
    """The processor as Linux names it, else as Python does."""
    names = [line for line in cpu_flags().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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


def measure_quickly(
    devices: tuple[str, ...], dtype: torch.dtype, width: int, file: Path, linear: LinearKind
) -> MachineRates:
    """Measures the GEMM rate (a fifth of a second) and the disk rate (up to 64 MiB, cache dropped)."""
    on_cpu = devices[0] == "cpu"
    kind = torch.int8 if linear == "int8" else dtype
    rate = measure_gemm_rate(torch.device(devices[0]), kind, max(width, SMALLEST_GEMM_WIDTH))
    return MachineRates(
        gemm_flop_per_s=rate / (devices.count("cpu") or 1),
        disk_bytes_per_s=measure_disk_rate(file),
        host_to_device_bytes_per_s=None if on_cpu else NOMINAL_HOST_TO_DEVICE,
    )


def measure_gemm_rate(device: torch.device, dtype: torch.dtype, width: int, seconds: float = 0.2) -> float:
    """Best FLOP/s of [rows, width] times [2 width, width] transposed; int8 sums in int32."""
    rows = 512 if device.type == "cpu" else 4096
    hidden = torch.randn(rows, width, device=device).to(dtype)
    weight = torch.randn(2 * width, width, device=device).to(dtype)
    multiply = _multiply_int8 if dtype == torch.int8 else _multiply
    multiply(hidden, weight)
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        multiply(hidden, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * rows * 2 * width * width / (time.perf_counter() - started))
    return best


def _multiply(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(hidden, weight)


def _multiply_int8(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(hidden, weight.t())


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
