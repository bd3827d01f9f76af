"""What a plan is for: this machine as it is measured, or one that a profile describes. Knows no model.

Of a model it takes three facts: the dtype its weights are stored in, its width, and a file of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from strata.engine.machine.devices import (
    DTYPES,
    GIB,
    SHARE_OF_FREE_MEMORY,
    device_budget_bytes,
    host_budget_bytes,
    resolve_devices,
    resolve_dtype,
)
from strata.engine.machine.product_rates import INT8, ProductRates, product_rates
from strata.engine.machine.profile import MachineProfile, load_profile, measure_rates
from strata.engine.machine.rates import LinearKind, MachineRates
from strata.engine.machine.settings import MachineSettings

LEAST_GAIN = 0.95
"""Of two lanes over one, as calibrated. A calibration is made on a quiet machine; on a busy one they gain."""
PRODUCTS = "product_flop_per_s"
"""Under which a plan keeps what its dtype was decided by."""


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Bytes allowed on each device and in host RAM; on CPU both limit the same memory."""

    device_bytes: int
    host_bytes: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan is for: devices, what they compute in, how much they hold, how fast they are.

    Attributes:
        most_lanes: lanes that a plan may split a CPU into, each with threads of its own; 1 where the user has
            said how many, or one is no slower.
        products: what the dtype was decided by; None where nothing was measured for it.
        notice: what a user should know of that decision; empty where it is as asked.
    """

    devices: tuple[str, ...]
    dtype: torch.dtype
    linear: LinearKind
    budgets: Budgets
    rates: MachineRates
    most_lanes: int = 1
    products: ProductRates | None = None
    notice: str = ""

    @property
    def worker_devices(self) -> tuple[str, ...]:
        """A device for every worker that a plan may want."""
        return self.devices * self.most_lanes

    def split(self, num_lanes: int) -> Machine:
        """The same with so many lanes a device."""
        rates = self.rates.shared_by(num_lanes)
        return replace(self, devices=self.devices * num_lanes, rates=rates, most_lanes=1)

    @property
    def on_cpu(self) -> bool:
        """Whether the workers compute on the CPU."""
        return self.devices[0] == "cpu"

    @property
    def computes_in(self) -> str:
        """The dtype that decides what overflows."""
        return "int8" if self.linear == "int8" else str(self.dtype).removeprefix("torch.")

    def describe_products(self) -> dict[str, object]:
        """What of the choice of a dtype a plan keeps: nothing where nothing was measured for it."""
        return {} if self.products is None else {PRODUCTS: dict(self.products.flop_per_s)}


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What the choice of a dtype and the quick measurements depend on; `file` is read to measure the disk."""

    dtype: torch.dtype
    hidden_size: int
    file: Path


def choose_machine(
    settings: MachineSettings,
    stored: StoredModel,
    profile: str | None = None,
    products: ProductRates | None = None,
) -> Machine:
    """This machine as it is measured, or the one that a profile describes.

    Args:
        settings: what the user allows and fixes.
        stored: the model that it is for.
        profile: name or file of a profile; None for this machine.
        products: what decides what to compute in on a CPU; None: this machine's.

    Raises:
        InputError: a device that is not there, or no such profile.
    """
    linear: LinearKind = "int8" if settings.dtype == INT8 else "dense"
    if profile is not None:
        return profiled_machine(settings, load_profile(profile), stored.dtype, linear)
    devices = resolve_devices(settings.devices)
    notice = ""
    is_open = linear == "int8" or stored.dtype != torch.float32
    if devices[0] == "cpu" and settings.dtype not in DTYPES and is_open:
        products = products or product_rates()
        if linear == "int8" and not products.int8_is_fast:
            linear, notice = "dense", describe_slow_int8(products)
    else:
        products = None
    dtype = resolve_dtype(settings.dtype, stored.dtype, devices, products)
    # Before anything is measured: torch keeps what that takes for the run, and the driver calls it taken.
    budgets = Budgets(
        device_bytes=device_budget_bytes(devices, settings.memory_gib),
        host_bytes=host_budget_bytes(settings.host_memory_gib),
    )
    rates = measure_rates(devices, dtype, stored.hidden_size, stored.file, linear)
    return Machine(
        devices=devices,
        dtype=dtype,
        linear=linear,
        budgets=budgets,
        rates=rates,
        most_lanes=_most_lanes(settings, devices, rates),
        products=products,
        notice=notice,
    )


def describe_slow_int8(products: ProductRates) -> str:
    """One line on int8 that was asked for where floating dtypes are faster."""
    return (
        f"--dtype int8: this CPU is slower in int8 (measured: {products}), so linear layers are computed in "
        f"{products.fastest_float}, with weights that are int8 decoded; expected a CPU with VNNI, or CUDA"
    )


def profiled_machine(
    settings: MachineSettings, profile: MachineProfile, stored: torch.dtype, linear: LinearKind
) -> Machine:
    """A machine that may be elsewhere.

    Args:
        settings: may fix dtype, devices and budgets.
        profile: the machine.
        stored: dtype of the checkpoint.
        linear: how linear layers are computed.

    Raises:
        InputError: the profile has no such device or no rates for the dtype.
    """
    devices = profile.choose_devices(settings.devices)
    name = profile.int8_activations if linear == "int8" else profile.resolve_dtype(stored)
    if settings.dtype in DTYPES:
        name = settings.dtype
    rates = profile.rates(name, linear).shared_by(devices.count("cpu") or 1)
    device_bytes = profile.device_memory_bytes * SHARE_OF_FREE_MEMORY
    host_bytes = profile.host_memory_bytes * SHARE_OF_FREE_MEMORY
    return Machine(
        devices=devices,
        dtype=DTYPES[name],
        linear=linear,
        budgets=Budgets(
            device_bytes=int(settings.memory_gib * GIB if settings.memory_gib else device_bytes),
            host_bytes=int(settings.host_memory_gib * GIB if settings.host_memory_gib else host_bytes),
        ),
        rates=rates,
        most_lanes=_most_lanes(settings, devices, rates),
    )


def _most_lanes(settings: MachineSettings, devices: tuple[str, ...], rates: MachineRates) -> int:
    """Two where the user leaves devices open, and two are known to be no slower than one."""
    is_open = settings.devices == "auto" and devices == ("cpu",)
    return 2 if is_open and (rates.two_lanes_gain or 0.0) >= LEAST_GAIN else 1
