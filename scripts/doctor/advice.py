"""What strata would do on this machine without being told anything. Asks the engine, and decides nothing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from strata.engine.machine.card_products import int8_over_float, unmeasured_int8
from strata.engine.machine.devices import (
    device_budget_bytes,
    host_budget_bytes,
    resolve_devices,
    resolve_dtype,
)
from strata.engine.machine.product_rates import ProductRates, product_rates
from strata.scripts.doctor.devices import DeviceFacts
from strata.scripts.kaggle.cells import Places

WORTH_A_TRY = 1.0
"""Products in int8 over those of floats, by their rates."""


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
        int8=int8_advice([device.model for device in found if device.trouble is None]),
        cache_dir=None if places is None else places.scratch / "strata-cache",
    )


def int8_advice(cards: list[str], products: ProductRates | None = None) -> str:
    """Whether 8-bit products are faster than those of the best floating dtype.

    Args:
        cards: names of the CUDA devices in use; none for the CPU.
        products: what decides on a CPU; None: this machine's, measured once.
    """
    if cards:
        ratios = {card: int8_over_float(card) for card in dict.fromkeys(cards)}
        measured = [ratio for ratio in ratios.values() if ratio is not None]
        if len(measured) < len(ratios):
            return f"no: {unmeasured_int8(cards)}"
        verdict = "worth a try" if min(measured) >= WORTH_A_TRY else "no"
        return f"{verdict}: measured {min(measured):.2f} times floats"
    products = products or product_rates()
    return f"{'worth a try' if products.int8_is_fast else 'no'}: measured {products}"


def temporary_folder() -> Path:
    """Where temporary files go."""
    return Path(tempfile.gettempdir())
