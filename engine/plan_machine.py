"""What a plan is for: this machine, or one that a profile describes. Knows nothing of trees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strata.engine.costs import ModelCosts
from strata.engine.machine import DTYPES, GIB, SHARE_OF_FREE_MEMORY, LinearKind, MachineRates
from strata.engine.machine_profile import MachineProfile
from strata.engine.plan import plan_sweep
from strata.engine.score_config import PlanConfig, ScoreConfig
from strata.engine.sweep_plan import Budgets, PlanOverrides, SweepPlan, Workload


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


def overrides_of(config: ScoreConfig) -> PlanOverrides:
    """What the flags fix."""
    return PlanOverrides(
        micro_batch_tokens=config.micro_batch_tokens,
        num_groups=config.num_groups,
        resident_layers=config.resident_layers,
        hidden_store=config.hidden_store,
    )


def plan_on(machine: Machine, costs: ModelCosts, work: Workload, overrides: PlanOverrides) -> SweepPlan:
    """The fastest plan that fits a machine; see plan_sweep."""
    name = next(name for name, known in DTYPES.items() if known is machine.dtype)
    return plan_sweep(
        costs,
        work,
        devices=machine.devices,
        dtype=name,
        linear=machine.linear,
        budgets=machine.budgets,
        rates=machine.rates,
        overrides=overrides,
    )
