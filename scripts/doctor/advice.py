"""What strata would do on this machine without being told anything. Asks the engine, and decides nothing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from strata.engine.machine.devices import (
    device_budget_bytes,
    host_budget_bytes,
    resolve_devices,
    resolve_dtype,
)
from strata.engine.machine.product_rates import ProductRates, product_rates
from strata.scripts.doctor.devices import DeviceFacts
from strata.scripts.kaggle.cells import Places

FAST_INT8_CAPABILITY = 8.0
"""From here on cuBLAS multiplies 8 bits faster than 16; on a T4 (7.5) it takes 1.7 times as long."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Settings that a run would take.

    Attributes:
        devices: `--devices auto`.
        dtype: `--dtype auto`, by the dtype that a checkpoint has.
        device_budget_bytes: for weights and activations, a device.
        host_budget_bytes: in RAM.
        int8: whether `--dtype int8` is worth a try here, and why.
        cache_dir: where `--cache-dir` would go; None where nothing is known of a slow mount.
    """

    devices: tuple[str, ...]
    dtype: dict[str, str]
    device_budget_bytes: int
    host_budget_bytes: int
    int8: str
    cache_dir: Path | None


def advise(found: list[DeviceFacts], places: Places | None) -> Advice:
    """What strata would do; devices that torch cannot use are left out."""
    usable = [device.name for device in found if device.trouble is None]
    devices = resolve_devices(",".join(usable) or "cpu")
    stored = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    return Advice(
        devices=devices,
        dtype={
            name: str(resolve_dtype("auto", dtype, devices)).removeprefix("torch.")
            for name, dtype in stored.items()
        },
        device_budget_bytes=device_budget_bytes(devices, None),
        host_budget_bytes=host_budget_bytes(None),
        int8=int8_advice([float(device.capability) for device in found if device.trouble is None]),
        cache_dir=None if places is None else places.scratch / "strata-cache",
    )


def int8_advice(capabilities: list[float], products: ProductRates | None = None) -> str:
    """Whether 8-bit products are faster than those of the best floating dtype.

    Args:
        capabilities: of the CUDA devices in use; none for the CPU.
        products: what decides on a CPU; None: this machine's, measured once.
    """
    if capabilities:
        oldest = min(capabilities)
        if oldest >= FAST_INT8_CAPABILITY:
            return f"worth a try: compute capability {oldest} multiplies 8 bits faster than 16"
        return f"no: compute capability {oldest} has no fast 8-bit product in cuBLAS"
    products = products or product_rates()
    return f"{'worth a try' if products.int8_is_fast else 'no'}: measured {products}"


def temporary_folder() -> Path:
    """Where temporary files go."""
    return Path(tempfile.gettempdir())
