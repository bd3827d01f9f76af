"""LoRA adapters in PEFT layout: reading them, and applying them to one decoder layer, merged or not.

Knows nothing of models, sweeps or devices, and never imports peft.

Legend: T tokens, D model dim, in / out a linear module's features, r an adapter's rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

# Rows of W + s B A held in float32 at a time while merging or taking DoRA's norm.
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraWeights:
    """The adapter of one linear module: W becomes W + scaling * B A.

    With DoRA, each row is then rescaled to the norm that `magnitude` gives. `a` [r, in], `b` [out, r] and
    `magnitude` [out] (None without DoRA) are floating-point, in the file's dtype.
    An object belongs to one weight for good: LoraLinear relies on it to compute DoRA's gain once.
    """

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        magnitude_bytes = 0 if self.magnitude is None else self.magnitude.nbytes
        return self.a.nbytes + self.b.nbytes + magnitude_bytes

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LoraWeights:
        """A copy on `device` with `a` and `b` in `dtype`; the magnitude becomes float32."""
        magnitude = None if self.magnitude is None else self.magnitude.to(device, torch.float32)
        return replace(self, a=self.a.to(device, dtype), b=self.b.to(device, dtype), magnitude=magnitude)


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A LoRA adapter; its tensors are memory-mapped from the file.

    `layers` holds, for each decoder layer, the LoraWeights by module path in the layer ("self_attn.q_proj").
    `score` [num_labels, D], or [1, 2 D] for --head contrast, is the trained classification head, if any,
    `score_bias` [num_labels] its bias, if any, and `labels` the names of its rows, where the folder tells.
    `num_bytes` counts all tensors. `declares_head` says that a head was trained along, there or not.
    """

    name: str
    path: Path
    layers: tuple[dict[str, LoraWeights], ...]
    score: Tensor | None
    num_bytes: int
    declares_head: bool = False
    score_bias: Tensor | None = None
    labels: tuple[str, ...] | None = None

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Paths of the modules that any layer adapts, sorted."""
        return tuple(sorted({path for layer in self.layers for path in layer}))


def merge(weight: Tensor, lora: LoraWeights, *, out: Tensor | None = None) -> Tensor:
    """Folds an adapter into a weight: W + s B A in float32, for DoRA times m / ||W + s B A|| row by row.

    Needs 64 MiB or so beside the result.

    Args:
        weight: [out, in], floating-point.
        lora: the module's adapter, on any device.
        out: where to put the result; `weight` itself is allowed. A new tensor by default.

    Returns:
        [out, in] in the weight's dtype.

    Source: peft.tuners.lora.layer.Linear.merge; DoRA: Liu et al. 2024, eq. 5.
    """
    merged = torch.empty_like(weight) if out is None else out
    for rows, adapted in _adapted_rows(weight, lora):
        if lora.magnitude is not None:
            magnitude = lora.magnitude[rows].to(adapted)
            adapted *= (magnitude / torch.linalg.norm(adapted, dim=1)).unsqueeze(1)
        merged[rows] = adapted
    return merged


def dora_gain(weight: Tensor, lora: LoraWeights) -> Tensor:
    """DoRA's factor of each output feature, m / ||W + s B A||.

    Args:
        weight: [out, in].
        lora: an adapter with a magnitude.

    Returns:
        [out] float32 (float64 for a float64 weight) on the weight's device.
    """
    assert lora.magnitude is not None, "only DoRA has a gain"
    norms = torch.cat([torch.linalg.norm(adapted, dim=1) for _, adapted in _adapted_rows(weight, lora)])
    return lora.magnitude.to(norms) / norms


def _adapted_rows(weight: Tensor, lora: LoraWeights) -> Iterator[tuple[slice, Tensor]]:
    """Yields W + s B A, a new tensor [rows, in] in float32 or better, a block of rows at a time."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    a = lora.a.to(weight.device, dtype)
    b = lora.b.to(weight.device, dtype)
    num_rows = max(1, _BLOCK_BYTES // (weight.shape[1] * dtype.itemsize))
    for start in range(0, weight.shape[0], num_rows):
        rows = slice(start, start + num_rows)
        yield rows, (b[rows] @ a).mul_(lora.scaling).add_(weight[rows])
