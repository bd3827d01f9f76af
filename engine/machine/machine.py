"""What a plan is for: this machine as it is measured, or one that a profile describes. Knows no model.

Of a model it takes three facts: the dtype its weights are stored in, its width, and a file of it.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from strata.engine.machine.profile import MachineProfile, load_profile, measure_rates
from strata.engine.machine.rates import LinearKind, MachineRates
from strata.engine.machine.settings import MachineSettings


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Bytes allowed on each device and in host RAM; on CPU both limit the same memory."""

    device_bytes: int
    host_bytes: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan is for: devices, what they compute in, how much they hold, how fast they are."""

    devices: tuple[str, ...]
    dtype: torch.dtype
    linear: LinearKind
    budgets: Budgets
    rates: MachineRates

    @property
    def on_cpu(self) -> bool:
        """Whether the workers compute on the CPU."""
        return self.devices[0] == "cpu"

    @property
    def computes_in(self) -> str:
        """The dtype that decides what overflows."""
        return "int8" if self.linear == "int8" else str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What the choice of a dtype and the quick measurements depend on; `file` is read to measure the disk."""

    dtype: torch.dtype
    hidden_size: int
    file: Path


def choose_machine(settings: MachineSettings, stored: StoredModel, profile: str | None = None) -> Machine:
    """This machine as it is measured, or the one that a profile describes.

    Args:
        settings: what the user allows and fixes.
        stored: the model that it is for.
        profile: name or file of a profile; None for this machine.

    Raises:
        InputError: a device that is not there, or no such profile.
    """
    linear: LinearKind = "int8" if settings.dtype == "int8" else "dense"
    if profile is not None:
        return profiled_machine(settings, load_profile(profile), stored.dtype, linear)
    devices = resolve_devices(settings.devices)
    dtype = resolve_dtype(settings.dtype, stored.dtype, devices)
    return Machine(
        devices=devices,
        dtype=dtype,
        linear=linear,
        budgets=Budgets(
            device_bytes=device_budget_bytes(devices, settings.memory_gib),
            host_bytes=host_budget_bytes(settings.host_memory_gib),
        ),
        rates=measure_rates(devices, dtype, stored.hidden_size, stored.file, linear),
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
        rates=profile.rates(name, linear, devices.count("cpu") or 1),
    )
