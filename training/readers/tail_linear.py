"""The last matrix of a decoder layer, which a layer computed again for its gradients need not multiply with.

A layer's output is residual + down_proj(...). On the way back nobody needs its value: only the
gradient passes through. Leaving the product out saves a quarter of a Llama layer's recomputation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

NORMS_AFTER = ("post_feedforward_layernorm", "post_mlp_layernorm")
"""Families that normalize what down_proj gives need its value."""


class TailLinear(nn.Module):
    """A linear layer that can give zeros in place of its value, with the gradient of its value.

    `weight` [out, in] and `bias` [out] or None are those of the module it replaces.
    """

    def __init__(self, replaced: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = replaced.weight, replaced.bias
        self.in_features, self.out_features = replaced.in_features, replaced.out_features
        self.gradient_only = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        if self.gradient_only:
            return _GradientOnly.apply(x, self.weight)
        return F.linear(x, self.weight, self.bias)


class _GradientOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return x.new_zeros(()).expand(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight, None


def find_tail(layer: nn.Module) -> TailLinear | None:
    """Puts a TailLinear in the place of a layer's down_proj (inside PEFT's wrapper, where there is one).

    Returns:
        It; None where the layer's output depends on down_proj's value in another way, or has no such module.
    """
    mlp = getattr(layer, "mlp", None)
    owner, name = mlp, "down_proj"
    if any(hasattr(layer, norm) for norm in NORMS_AFTER) or not hasattr(mlp, name):
        return None
    if hasattr(getattr(mlp, name), "base_layer"):
        owner, name = getattr(mlp, name), "base_layer"
    if type(getattr(owner, name)) is not nn.Linear:
        return None
    tail = TailLinear(getattr(owner, name))
    setattr(owner, name, tail)
    return tail


@contextmanager
def gradient_only(tail: TailLinear | None) -> Iterator[None]:
    """Inside the block the layer's output is wrong, and its gradient right."""
    if tail is not None:
        tail.gradient_only = True
    try:
        yield
    finally:
        if tail is not None:
            tail.gradient_only = False
