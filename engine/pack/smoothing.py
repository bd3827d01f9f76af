"""SmoothQuant: the spread of activations between channels moves into weights, where int8 has room for it.

A norm's channel j is divided by s_j, and column j of all linear weights that read the norm is multiplied by
it, so that the model computes the same. Scales are powers of two: dividing and multiplying by them is exact
in any dtype. Knows no way of finding out what activations are.
Source: Xiao et al. 2022, SmoothQuant, arXiv 2211.10438, section 4; powers of two are ours.
Independent check: the model as it was, in float32 (tests/engine/calibration/test_smoothing.py).
Legend: N outputs, K inputs of a linear weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.formats.stored_weight import StoredWeight

DEFAULT_ALPHA = 0.75
"""How much of the spread moves; what SmoothQuant uses for Llama-like models is 0.75 to 0.85."""
SMALLEST = 1e-5
"""Of what is divided by: a channel that never fires keeps a finite scale."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NormMaxima:
    """What calibration found of one norm.

    Attributes:
        norm: its path ("layers.3.input_layernorm").
        offset: what it adds to its weight: 1 in Gemma, 0 elsewhere.
        linears: paths of the linear modules that read it, and nothing else does.
        activations: [K] float32, largest |output| of each channel.
        weights: [K] float32, largest |weight| of each column over all these linears.
    """

    norm: str
    offset: float
    linears: tuple[str, ...]
    activations: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class RescaledWeight(StoredWeight):
    """A stored weight whose last axis is multiplied: decoded = (source + offset) * factors - offset."""

    format_name = "rescaled"

    source: StoredWeight
    factors: torch.Tensor
    offset: float = 0.0

    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """In float32, rounded once."""
        dense = self.source.decode(tensors, torch.empty(self.shape, dtype=torch.float32))
        return out.copy_(dense.add_(self.offset).mul_(self.factors).sub_(self.offset))


@dataclass(frozen=True, kw_only=True, eq=False)
class Smoothing:
    """Factors [K] of weights' last axes, and offsets of norms, by the name that weights are stored under."""

    factors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)

    def apply(self, weight: StoredWeight) -> StoredWeight:
        """The weight as it will be, itself where nothing changes."""
        if weight.name not in self.factors:
            return weight
        return RescaledWeight(
            name=weight.name,
            shape=weight.shape,
            parts=weight.parts,
            source=weight,
            factors=self.factors[weight.name],
            offset=self.offsets.get(weight.name, 0.0),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        digest = hashlib.sha256()
        for name, factors in sorted(self.factors.items()):
            digest.update(f"{name} {self.offsets.get(name)}".encode() + factors.numpy().tobytes())
        return digest.hexdigest()


def smoothing_scales(activations_K: torch.Tensor, weights_K: torch.Tensor, alpha: float) -> torch.Tensor:
    """s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), rounded to a power of two.

    Args:
        activations_K: [K] float32, largest |activation| of each channel.
        weights_K: [K] float32, largest |weight| of each column.
        alpha: 0 leaves activations alone, 1 makes their channels equal.

    Returns:
        [K] float32.

    Source: Xiao et al. 2022, arXiv 2211.10438, equation 4.
    """
    exponents = alpha * activations_K.clamp(min=SMALLEST).log2()
    return (exponents - (1 - alpha) * weights_K.clamp(min=SMALLEST).log2()).round().exp2()


def plan_smoothing(checkpoint: Checkpoint, found: Iterable[NormMaxima], alpha: float) -> Smoothing:
    """The factors of every weight that changes.

    Raises:
        InputError: a norm or linear weight that is not stored as one tensor, or no norm at all.
    """
    factors: dict[str, torch.Tensor] = {}
    offsets: dict[str, float] = {}
    for maxima in found:
        if f"{maxima.norm}.weight" not in checkpoint.weights:
            # A layer beyond those that are kept.
            continue
        scales = smoothing_scales(maxima.activations, maxima.weights, alpha)
        for tensor in _tensors_of_norm(checkpoint, maxima.norm):
            factors[tensor] = 1 / scales
            offsets[tensor] = maxima.offset if tensor.endswith(".weight") else 0.0
        for linear in maxima.linears:
            factors[_stored_name(checkpoint, f"{linear}.weight")] = scales
    if not factors:
        raise InputError(
            f"--calibrate: no norm of {checkpoint.path} is read by linear modules alone; "
            "expected a decoder like Llama's, without experts"
        )
    return Smoothing(factors=factors, offsets=offsets)


def _tensors_of_norm(checkpoint: Checkpoint, norm: str) -> list[str]:
    names = [f"{norm}.{part}" for part in ("weight", "bias")]
    return [_stored_name(checkpoint, name) for name in names if name in checkpoint.weights]


def _stored_name(checkpoint: Checkpoint, name: str) -> str:
    single = checkpoint.require(name).single
    if single is None:
        raise InputError(f"--calibrate: {name} is put together of several tensors; expected one")
    return single.name


def merge_maxima(found: Sequence[NormMaxima]) -> NormMaxima:
    """The maxima of several workers, which saw different tokens of one norm."""
    activations = torch.stack([maxima.activations for maxima in found]).amax(0)
    return replace(found[0], activations=activations)
