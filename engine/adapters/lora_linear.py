"""Linear modules of a decoder layer that apply an adapter unmerged, one adapter at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor, nn

from strata.engine.adapters.lora import LoraWeights, dora_gain
from strata.engine.types import InputError


class LoraLinear(nn.Module):
    """A linear module that applies the active adapter of the current layer, unmerged.

    It owns `weight` and `bias` under the names a Linear has, so that weights are assigned as before. DoRA's
    gain is computed once for each LoraWeights and kept as long as that object lives.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Takes over the parameters of a linear module: weight [out, in] and bias [out] or None."""
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.active: LoraWeights | None = None
        self._gains: WeakKeyDictionary[LoraWeights, Tensor] = WeakKeyDictionary()

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in] to [..., out]."""
        lora = self.active
        if lora is None:
            return self.apply_weight(x, self.bias)
        y = self.apply_weight(x, self.bias if lora.magnitude is None else None)
        return _add_low_rank(y, x, self.bias, lora, self._gain(lora))

    def apply_weight(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in] times the base weight, plus a bias."""
        return F.linear(x, self.weight, bias)

    def dense_weight(self) -> Tensor:
        """The base weight [out, in], floating-point."""
        return self.weight

    def _gain(self, lora: LoraWeights) -> Tensor | None:
        if lora.magnitude is None:
            return None
        if lora not in self._gains:
            self._gains[lora] = dora_gain(self.dense_weight(), lora).detach()
        return self._gains[lora]


def wrap_linears(layer: nn.Module, module_paths: Iterable[str]) -> None:
    """Replaces linear submodules of a decoder layer, in place, by LoraLinear with the same parameters.

    Parameters may be on the meta device. Modules already wrapped are left alone.

    Raises:
        InputError: a path names no submodule, or one that is not an ordinary Linear.
    """
    modules = dict(layer.named_modules())
    for path in module_paths:
        module = modules.get(path)
        if isinstance(module, LoraLinear):
            continue
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            found = "nothing" if module is None else type(module).__name__
            raise InputError(
                f"an adapter changes {path!r}, where the model's layer has {found}; expected a Linear"
            )
        layer.set_submodule(path, LoraLinear(module.weight, module.bias))


def set_active(layer: nn.Module, lora: Mapping[str, LoraWeights] | None) -> None:
    """Makes a wrapped layer apply one adapter's LoraWeights by module path, or none.

    Wrapped modules the adapter does not change become plain.

    Raises:
        ValueError: `lora` names a module that is not wrapped.
    """
    wrapped = {path: module for path, module in layer.named_modules() if isinstance(module, LoraLinear)}
    lora = lora or {}
    if missing := sorted(set(lora) - set(wrapped)):
        raise ValueError(f"modules {missing} are not wrapped; wrapped are {sorted(wrapped)}")
    for path, module in wrapped.items():
        module.active = lora.get(path)


def _add_low_rank(
    y: Tensor, x: Tensor, bias: Tensor | None, lora: LoraWeights, gain: Tensor | None
) -> Tensor:
    """Adds s (x A^T) B^T to y in place; with DoRA, whose y comes without bias, also gain and bias."""
    low_rank = F.linear(x, lora.a.to(x))
    y.view(-1, y.shape[-1]).addmm_(
        low_rank.view(-1, low_rank.shape[-1]), lora.b.to(x).t(), alpha=lora.scaling
    )
    if gain is None:
        return y
    # A float32 gain times a half-precision y in place is computed in float32 and rounded once.
    y.mul_(gain)
    return y if bias is None else y.add_(bias)


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora: LoraWeights, gain: Tensor | None = None
) -> Tensor:
    """The adapted linear map without forming the adapted weight: gain * (x W^T + s (x A^T) B^T) + bias.

    Args:
        x: [..., in].
        weight: [out, in] in x's dtype.
        bias: [out] or None.
        lora: the module's adapter; cast to x's device and dtype when it is elsewhere.
        gain: `dora_gain(weight, lora)` when it is already known; not used without DoRA.

    Returns:
        [..., out] in x's dtype.
    """
    y = F.linear(x, weight, bias if lora.magnitude is None else None)
    if lora.magnitude is not None and gain is None:
        gain = dora_gain(weight, lora)
    return _add_low_rank(y, x, bias, lora, gain)
