"""What torch sees of CUDA devices, and which of them it cannot use. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """One CUDA device.

    Attributes:
        name: as the command line calls it, such as cuda:0.
        model: such as Tesla T4.
        capability: such as 7.5.
        total_bytes: of its memory.
        free_bytes: of its memory, now; None where the device cannot be used.
        trouble: why it cannot be used; None where it can.
    """

    name: str
    model: str
    capability: str
    total_bytes: int
    free_bytes: int | None
    trouble: str | None


def list_devices() -> list[DeviceFacts]:
    """All CUDA devices that torch sees."""
    return [_describe(index) for index in range(torch.cuda.device_count())]


def capability_trouble(capability: tuple[int, int], built_for: Sequence[str]) -> str | None:
    """Why a device of a compute capability cannot run a build of torch; None where it can.

    Binary code runs on devices of the same major version and a minor one that is not lower; PTX
    (`compute_80`) on all later devices.

    Args:
        capability: of the device, such as (7, 5).
        built_for: as `torch.cuda.get_arch_list` tells, such as sm_75 and compute_90.
    """
    if not built_for:
        return None
    for name in built_for:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("abcdefghijklmnopqrstuvwxyz")
        built = int(digits[:-1]), int(digits[-1])
        if kind == "compute" and built <= capability:
            return None
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return None
    version = ".".join(map(str, capability))
    return f"this torch has no code for compute capability {version} (it has {', '.join(built_for)})"


def _describe(index: int) -> DeviceFacts:
    name, facts = f"cuda:{index}", torch.cuda.get_device_properties(index)
    trouble = capability_trouble((facts.major, facts.minor), torch.cuda.get_arch_list())
    return DeviceFacts(
        name=name,
        model=facts.name,
        capability=f"{facts.major}.{facts.minor}",
        total_bytes=facts.total_memory,
        free_bytes=None if trouble else torch.cuda.mem_get_info(index)[0],
        trouble=trouble,
    )
