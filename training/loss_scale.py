"""Gradients in float16: the loss is multiplied, so that small ones do not become 0, and they are divided.

A step begins with the same scale each time and is repeated with a smaller one where something overflows: no
step is left out, and a step depends on nothing but its own batch, weights and seed. Knows no model.
Source: Micikevicius et al. 2018, Mixed Precision Training, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

FIRST_SCALE = 2.0**12
"""Large enough for gradients of 1e-8 to be normal numbers in float16."""
STEP = 2.0**4


def accumulate_scaled(parameters: Sequence[torch.nn.Parameter], attempt: Callable[[float], float]) -> float:
    """Adds gradients to the parameters' `grad`; returns the loss.

    Args:
        parameters: that are trained.
        attempt: adds the gradients of a loss times a scale, and returns the loss itself; repeatable.
    """
    before = [parameter.grad for parameter in parameters]
    scale = FIRST_SCALE
    while True:
        for parameter in parameters:
            parameter.grad = None
        loss = attempt(scale)
        if scale == 1.0 or not math.isfinite(loss) or _are_finite(parameters):
            break
        scale = max(1.0, scale / STEP)
    for parameter, earlier in zip(parameters, before, strict=True):
        if parameter.grad is not None:
            parameter.grad.div_(scale)
            if earlier is not None:
                parameter.grad.add_(earlier)
        else:
            parameter.grad = earlier
    return loss


def scaled_backward(loss: torch.Tensor, scale: float) -> None:
    """The backward pass of a loss times a scale."""
    (loss if scale == 1.0 else loss * scale).backward()


def _are_finite(parameters: Sequence[torch.nn.Parameter]) -> bool:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
