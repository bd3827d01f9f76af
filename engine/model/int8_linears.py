"""`--dtype int8` inside a decoder: its linear modules replaced by ones that hold int8 codes and scales.

Data flow of a module: x [1, T, K] -> codes and a scale a token, made once for all modules that read the same
x (q, k and v; gate and up) -> integer product with the weight's codes [N, K] -> [1, T, N] in x's dtype. How
many columns of x stay apart is found in the first micro-batches of a layer, and holds for the others. Which
matrices stay dense: a mixture's router, and what is too small to gain. Knows nothing of files.
Independent check: kernels/int8_linear/reference.py, and the float32 model (tests/engine/model/test_int8.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from strata.engine.adapters.lora_linear import LoraLinear
from strata.kernels.int8_linear.linear import int8_linear
from strata.kernels.int8_linear.quantize import Int8Activations, quantize_activations

SMALLEST_WIDTH = 16
"""Linears with fewer inputs or outputs stay dense."""
ROUTER_NAMES = ("gate", "router")
"""Which expert a token meets is decided in full precision."""

SETTLED_TOKENS = 512
"""Tokens after which the number of an input's outlier columns is known: the first micro-batch on a card. So
found it changes SmolLM2's scores as much as when every micro-batch has its own (docs/accuracy.md)."""


@dataclass(frozen=True, kw_only=True)
class SeenInput:
    """What is known of an input of a layer's modules after some micro-batches.

    Attributes:
        num_tokens: in them.
        num_outliers: the most outlier columns that one of them had.
    """

    num_tokens: int = 0
    num_outliers: int = 0

    def quantize(self, x_TK: torch.Tensor) -> Int8Activations:
        """The next micro-batch's: with columns that are found, or so many once the number is known."""
        is_settled = self.num_tokens >= SETTLED_TOKENS
        return quantize_activations(x_TK, num_outliers=self.num_outliers if is_settled else None)

    def after(self, x: Int8Activations) -> SeenInput:
        """What is known when that micro-batch is counted, too."""
        return SeenInput(
            num_tokens=self.num_tokens + len(x.codes_TK),
            num_outliers=max(self.num_outliers, len(x.outlier_columns)),
        )


class SharedActivations:
    """Quantises inputs, one that several modules read once, and counts the outlier columns of each.

    The columns of an input are found, for which CUDA is waited for, until `begin` announces micro-batches
    that belong together: then in the first ones alone (see `SeenInput`).
    """

    def __init__(self) -> None:
        self._input: torch.Tensor | None = None
        self._quantized: Int8Activations | None = None
        self._seen: dict[nn.Module, SeenInput] | None = None
        self._seen_before: dict[nn.Module, SeenInput] = {}

    def begin(self, *, is_first: bool) -> None:
        """Announces the next micro-batch of a layer: the first, or one that follows in the same order."""
        if is_first or self._seen is None:
            self._seen = {}
        self._seen_before = dict(self._seen)

    def quantize(self, x: torch.Tensor, reader: nn.Module) -> Int8Activations:
        """The quantised rows of x [..., K]; an input goes by the first of the modules that read it."""
        if self._quantized is None or self._input is not x:
            seen = SeenInput() if self._seen is None else self._seen.get(reader, SeenInput())
            self._input, self._quantized = x, seen.quantize(x.reshape(-1, x.shape[-1]))
            if self._seen is not None:
                self._seen[reader] = seen.after(self._quantized)
        return self._quantized

    def undo(self) -> None:
        """Forgets the micro-batch that was announced last, whose results are not used."""
        self._input = self._quantized = None
        if self._seen is not None:
            self._seen = dict(self._seen_before)

    def forget(self) -> None:
        """Lets go of the remembered input, and of what is known of all."""
        self._input = self._quantized = self._seen = None
        self._seen_before = {}


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
        rounded = self._shared.quantize(x, self)
        product = int8_linear(rounded, self.weight, self.weight_scale, bias, dtype=x.dtype)
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
