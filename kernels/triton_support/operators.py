"""Operators of ours that fill an output: one Triton kernel on CUDA, plain torch on CPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from strata.kernels.triton_support.availability import why_no_triton

OPERATORS = torch.library.Library("strata", "FRAGMENT")


def define_filler(
    name: str, arguments: str, plain: Callable[..., None], on_card: Callable[..., None]
) -> Callable[..., None]:
    """An operator `strata::name` that overwrites its last argument, `out`, and returns nothing.

    Args:
        name: of the operator.
        arguments: those before `out`, in the words of torch's schemas.
        plain: computes it on CPUs.
        on_card: computes it on CUDA; imports triton when it is called.

    Returns:
        The operator.
    """
    OPERATORS.define(f"{name}({arguments}, Tensor(a!) out) -> ()")
    OPERATORS.impl(name, plain, "CPU")
    OPERATORS.impl(name, on_card, "CUDA")
    return getattr(torch.ops.strata, name)


def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device."""
    return device.type == "cuda" and why_no_triton(device) is None
