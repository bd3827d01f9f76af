"""Budgets of an engine that shares its machine with others like it."""

from __future__ import annotations

from dataclasses import replace

from strata.engine.machine.devices import GIB, device_budget_bytes, host_budget_bytes, resolve_devices
from strata.engine.machine.settings import MachineSettings


def divide_memory(settings: MachineSettings, num_engines: int) -> MachineSettings:
    """The settings of one of several engines that work on a machine side by side.

    Args:
        settings: those of the machine, with its budgets, or without: what is free now.
        num_engines: how many share it; each has CUDA devices of its own.

    Returns:
        The settings with an equal share of host memory, which is also that of a CPU as a device.

    Raises:
        InputError: a device that is not there.
    """
    if num_engines == 1:
        return settings
    devices = resolve_devices(settings.devices)
    memory_gib = settings.memory_gib
    if devices[0] == "cpu":
        memory_gib = device_budget_bytes(devices, memory_gib) / GIB / num_engines
    host_memory_gib = host_budget_bytes(settings.host_memory_gib) / GIB / num_engines
    return replace(settings, memory_gib=memory_gib, host_memory_gib=host_memory_gib)
