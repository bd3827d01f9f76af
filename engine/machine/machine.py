"""What a plan is for: this machine, or one that a profile describes. Knows nothing of trees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strata.engine.config import PlanConfig, ScoreConfig
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
from strata.engine.weights.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan is for: devices, what they compute in, how much they hold, how fast they are."""

    devices: tuple[str, ...]
    dtype: torch.dtype
    linear: LinearKind
    budgets: Budgets
    rates: MachineRates


def profiled_machine(
    config: PlanConfig, profile: MachineProfile, stored: torch.dtype, linear: LinearKind
) -> Machine:
    """A machine that may be elsewhere.

    Args:
        config: may fix dtype, devices and budgets.
        profile: the machine.
        stored: dtype of the checkpoint.
        linear: how linear layers are computed.

    Raises:
        InputError: the profile has no such device or no rates for the dtype.
    """
    devices = profile.choose_devices(config.devices)
    name = profile.int8_activations if linear == "int8" else profile.resolve_dtype(stored)
    if config.dtype in DTYPES:
        name = config.dtype
    device_bytes = profile.device_memory_bytes * SHARE_OF_FREE_MEMORY
    host_bytes = profile.host_memory_bytes * SHARE_OF_FREE_MEMORY
    return Machine(
        devices=devices,
        dtype=DTYPES[name],
        linear=linear,
        budgets=Budgets(
            device_bytes=int(config.memory_gib * GIB if config.memory_gib else device_bytes),
            host_bytes=int(config.host_memory_gib * GIB if config.host_memory_gib else host_bytes),
        ),
        rates=profile.rates(name, linear, devices.count("cpu") or 1),
    )


def choose_machine(config: ScoreConfig, checkpoint: Checkpoint) -> Machine:
    """This machine as it is measured, or the one that `strata plan --profile` names.

    Raises:
        InputError: a device that is not there, or no such profile.
    """
    linear: LinearKind = "int8" if config.dtype == "int8" else "dense"
    if isinstance(config, PlanConfig) and config.profile is not None:
        return profiled_machine(config, load_profile(config.profile), checkpoint.stored_dtype, linear)
    devices = resolve_devices(config.devices)
    dtype = resolve_dtype(config.dtype, checkpoint.stored_dtype, devices)
    file = checkpoint.require("norm.weight").parts[0][0].file
    return Machine(
        devices=devices,
        dtype=dtype,
        linear=linear,
        budgets=Budgets(
            device_bytes=device_budget_bytes(devices, config.memory_gib),
            host_bytes=host_budget_bytes(config.host_memory_gib),
        ),
        rates=measure_rates(devices, dtype, checkpoint.config.hidden_size, file, linear),
    )


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Bytes allowed on each device and in host RAM; on CPU both limit the same memory."""

    device_bytes: int
    host_bytes: int
