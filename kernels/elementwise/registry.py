"""Which fused functions there are, and the choice of some for a device. New ones are a line here."""

from __future__ import annotations

import torch

from strata.kernels.elementwise.functions import FusedFunctions
from strata.kernels.elementwise.fused_cpu import FUSED_ON_CPU
from strata.kernels.elementwise.operators import TRITON

FUNCTIONS: list[FusedFunctions] = [TRITON, FUSED_ON_CPU]
"""In order of preference."""


def choose_functions(device: torch.device, dtype: torch.dtype) -> FusedFunctions | None:
    """The first that do not refuse a device and a dtype, None where all do."""
    return next((one for one in FUNCTIONS if one.refusal(device, dtype) is None), None)


def refusals(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why each that is not used is not, in words."""
    found = [one.refusal(device, dtype) for one in FUNCTIONS]
    return [reason for reason in found if reason is not None]
