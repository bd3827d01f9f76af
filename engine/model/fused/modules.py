"""Gives a decoder's modules fused forwards where these compute what the family's own do, on its device.

What a module is, `patterns` tells; here it is tried once more where it will run, by the functions that will
run, and whatever differs stays as it was. Knows no checkpoint. Only for scoring: no gradients are thought of.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from strata.engine.model.fused.patterns import FusedCandidate, recognize
from strata.engine.model.small_config import LayerKind, layer_kind
from strata.kernels.elementwise.functions import FusedFunctions

TOLERANCE_ROUNDINGS = 32
"""Largest difference over the largest output, in roundings of the dtype."""


def fuse_modules(
    modules: Iterable[nn.Module], functions: FusedFunctions, device: torch.device, dtype: torch.dtype
) -> frozenset[str]:
    """Gives modules, and all modules in them, fused forwards where these compute the same.

    Args:
        modules: decoder layers, norms; still with the forwards of their classes.
        functions: of the device.
        device: where the modules will run.
        dtype: of activations and weights.

    Returns:
        Names of the classes whose modules were fused.
    """
    found: dict[LayerKind, FusedCandidate | None] = {}
    fused: set[str] = set()
    with torch.no_grad():
        for module in (inner for outer in modules for inner in outer.modules()):
            kind = layer_kind(module)
            if kind not in found:
                found[kind] = _choose(module, functions, device, dtype)
            candidate = found[kind]
            if candidate is not None:
                candidate.install(module, functions)
                fused.add(type(module).__name__)
    return frozenset(fused)


def unfuse_modules(modules: Iterable[nn.Module]) -> None:
    """Gives modules, and all modules in them, the forwards of their classes again."""
    for module in (inner for outer in modules for inner in outer.modules()):
        vars(module).pop("forward", None)


def _choose(
    module: nn.Module, functions: FusedFunctions, device: torch.device, dtype: torch.dtype
) -> FusedCandidate | None:
    candidate = recognize(module)
    if candidate is None or getattr(functions, candidate.function) is None:
        return None
    own, fused = candidate.trial(functions, device, dtype)
    return candidate if all(map(_is_close, own, fused)) else None


def _is_close(own: torch.Tensor, fused: torch.Tensor) -> bool:
    if own.shape != fused.shape or own.dtype != fused.dtype:
        return False
    exact, error = own.cpu().double(), (own.cpu().double() - fused.cpu().double()).abs()
    return bool(error.max() <= TOLERANCE_ROUNDINGS * torch.finfo(own.dtype).eps * exact.abs().max())
