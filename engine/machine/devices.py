"""What the machine offers: devices, memory budgets, the dtype that is fast, and quickly measured rates."""

from __future__ import annotations

import psutil
import torch

from strata.engine.machine.product_rates import ProductRates, product_rates
from strata.engine.types import InputError

GIB = 1 << 30
SHARE_OF_FREE_MEMORY = 0.8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def resolve_dtype(
    setting: str,
    stored: torch.dtype,
    devices: tuple[str, ...],
    products: ProductRates | None = None,
) -> torch.dtype:
    """Turns `--dtype` into a dtype of activations: the checkpoint's own where devices are fast in it.

    With int8 that is the fast 16-bit dtype, whatever the checkpoint's. On a CPU a measurement decides; a T4
    says that it supports bfloat16 but emulates it, so on CUDA compute capability does.

    Args:
        setting: of `--dtype`.
        stored: dtype of the checkpoint.
        devices: one a worker.
        products: what decides on a CPU; None: this machine's.
    """
    if setting in DTYPES:
        return DTYPES[setting]
    if stored not in (torch.float16, torch.bfloat16):
        if setting != "int8":
            return torch.float32
        stored = torch.bfloat16
    if devices[0] == "cpu":
        return DTYPES[(products or product_rates()).fastest_float]
    oldest = min(torch.cuda.get_device_capability(name) for name in devices)
    return stored if oldest >= (8, 0) else torch.float16


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
