"""`--dtype int8` inside a decoder: its linear modules replaced by ones that hold int8 codes and scales.

Data flow of a module: x [1, T, K] -> codes and a scale a token, made once for all modules that read the same
x (q, k and v; gate and up) -> integer product with the weight's codes [N, K] -> [1, T, N] in x's dtype. Which
matrices stay dense: a mixture's router, and what is too small to gain. Knows nothing of files.
Independent check: kernels/int8_linear/reference.py, and the float32 model (tests/engine/model/test_int8.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from strata.engine.adapters.lora_linear import LoraLinear
from strata.kernels.int8_linear.linear import int8_linear
from strata.kernels.int8_linear.quantize import Int8Activations, quantize_activations

SMALLEST_WIDTH = 16
"""Linears with fewer inputs or outputs stay dense."""
ROUTER_NAMES = ("gate", "router")
"""Which expert a token meets is decided in full precision."""


class SharedActivations:
    """Remembers the last quantised input, so that modules reading the same tensor quantise it once."""

    def __init__(self) -> None:
        self._input: torch.Tensor | None = None
        self._quantized: Int8Activations | None = None

    def quantize(self, x: torch.Tensor) -> Int8Activations:
        """The quantised rows of x [..., K]."""
        if self._quantized is None or self._input is not x:
            self._input = x
            self._quantized = quantize_activations(x.reshape(-1, x.shape[-1]))
        return self._quantized

    def forget(self) -> None:
        """Lets go of the remembered input."""
        self._input = self._quantized = None


class Int8Linear(LoraLinear):
    """A linear module with an int8 weight [N, K] and a float32 `weight_scale` [N]; adapters apply on top."""

    def __init__(self, linear: nn.Linear, shared: SharedActivations) -> None:
        """Takes the place of a linear module on the meta device."""
        codes = torch.empty(linear.weight.shape, dtype=torch.int8, device="meta")
        super().__init__(nn.Parameter(codes, requires_grad=False), linear.bias)
        scale = torch.empty(linear.weight.shape[0], dtype=torch.float32, device="meta")
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self._shared = shared

    def apply_weight(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., K] times the weight, plus a bias [N]."""
        product = int8_linear(self._shared.quantize(x), self.weight, self.weight_scale, bias, dtype=x.dtype)
        return product.view(*x.shape[:-1], product.shape[-1])

    def dense_weight(self) -> torch.Tensor:
        """[N, K] float32."""
        return self.weight.float() * self.weight_scale[:, None]


def int8_names(layer: nn.Module) -> frozenset[str]:
    """Names of the weights in a decoder layer that are held in int8 ("mlp.up_proj.weight")."""
    return frozenset(
        f"{path}.weight" for path, module in layer.named_modules() if isinstance(module, Int8Linear)
    )


def quantize_linears(
    layer: nn.Module, shared: SharedActivations, dense: frozenset[str] = frozenset()
) -> None:
    """Replaces a decoder layer's linear modules, in place, but for those whose paths are `dense`."""
    for path, module in list(_eligible(layer)):
        if path not in dense:
            layer.set_submodule(path, Int8Linear(module, shared))


def _eligible(layer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in layer.named_modules():
        plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
        if plain and min(module.weight.shape) >= SMALLEST_WIDTH and path.split(".")[-1] not in ROUTER_NAMES:
            yield path, module
