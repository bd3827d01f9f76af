"""The fused functions as torch operators: Triton on CUDA, plain torch on CPUs, shapes on the meta device.

A tensor on the CPU that stands for one on a card, as in tests without a card, is thus computed as well, and
an operator counts as the one kernel that it is.
"""

from __future__ import annotations

import torch

from strata.kernels.elementwise import plain
from strata.kernels.elementwise.functions import Activation, FusedFunctions, NormSettings, Projection
from strata.kernels.triton_support.availability import why_no_triton

OPERATORS = torch.library.Library("strata", "FRAGMENT")
NORM = "Tensor weight, float eps, float offset, bool rounds_first"
OPERATORS.define(f"rms_norm(Tensor x, {NORM}) -> Tensor")
OPERATORS.define(f"add_rms_norm(Tensor x, Tensor residual, {NORM}) -> (Tensor, Tensor)")
OPERATORS.define("rotate(Tensor query, Tensor key, Tensor cos, Tensor sin) -> (Tensor, Tensor)")
OPERATORS.define("gated(Tensor gate, Tensor up, str activation) -> Tensor")


def _norm_on_card(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, rounds_first: bool
) -> torch.Tensor:
    from strata.kernels.elementwise.triton_kernels import WIDEST_ROW, launch_rms_norm

    if x.shape[-1] > WIDEST_ROW:
        return plain.rms_norm(x, weight, eps, offset, rounds_first)
    return launch_rms_norm(x, None, weight, eps, offset, rounds_first)[0]


def _add_norm_on_card(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    rounds_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    from strata.kernels.elementwise.triton_kernels import WIDEST_ROW, launch_rms_norm

    if x.shape[-1] > WIDEST_ROW:
        return plain.add_rms_norm(x, residual, weight, eps, offset, rounds_first)
    return launch_rms_norm(x, residual, weight, eps, offset, rounds_first)


def _rotate_on_card(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    from strata.kernels.elementwise.triton_kernels import launch_rotate

    return launch_rotate(query, key, cos, sin)


def _gated_on_card(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    from strata.kernels.elementwise.triton_kernels import launch_gated

    return launch_gated(gate, up, activation)


def _new(*tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
    made = tuple(torch.empty_like(tensor) for tensor in tensors)
    return made if len(made) > 1 else made[0]


for _name, _plain, _on_card, _shapes in (
    ("rms_norm", plain.rms_norm, _norm_on_card, lambda x, *settings: _new(x)),
    ("add_rms_norm", plain.add_rms_norm, _add_norm_on_card, lambda x, residual, *settings: _new(x, residual)),
    ("rotate", plain.rotate, _rotate_on_card, lambda query, key, *tables: _new(query, key)),
    ("gated", plain.gated, _gated_on_card, lambda gate, up, activation: _new(gate)),
):
    OPERATORS.impl(_name, _plain, "CPU")
    OPERATORS.impl(_name, _on_card, "CUDA")
    OPERATORS.impl(_name, _shapes, "Meta")


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, settings: NormSettings) -> torch.Tensor:
    return torch.ops.strata.rms_norm(x, weight, settings.eps, settings.offset, settings.rounds_first)


def _gated(x: torch.Tensor, gate: Projection, up: Projection, activation: Activation) -> torch.Tensor:
    return torch.ops.strata.gated(gate(x), up(x), activation)


def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    reason = why_no_triton(device)
    if reason is None and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{device} has no bfloat16"
    return reason


TRITON = FusedFunctions(
    name="triton", refusal=_refusal, rms_norm=_rms_norm, rotate=torch.ops.strata.rotate, gated=_gated
)
