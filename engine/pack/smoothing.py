"""SmoothQuant: the spread of activations between channels moves into weights, where int8 has room for it.

A norm's channel j is divided by s_j, and column j of all linear weights that read the norm is multiplied by
it, so that the model computes the same. Scales are powers of two: dividing and multiplying by them is exact
in any dtype. Knows no way of finding out what activations are.
Source: Xiao et al. 2022, SmoothQuant, arXiv 2211.10438, section 4; powers of two are ours.
Independent check: the model as it was, in float32 (tests/engine/smoothquant/test_smoothing.py).
Legend: N outputs, K inputs of a linear weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from strata.engine.pack.calibrated import Calibration, InputMoments
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.formats.stored_weight import StoredWeight
from strata.engine.weights.tensor_reader import TensorReader
from strata.kernels.int8_linear.quantize import quantize_weight

LARGEST_ERROR = 0.03
"""Of a matrix in int8 (`rounding_error`): at most 0.016 in SmolLM2, 0.14 with outliers of 60 spreads."""
MEDIAN_OF_NORMAL = 0.6745
"""Of absolute values, over the standard deviation."""
SMALLEST = 1e-5
"""Of what is divided by: a channel that never fires keeps a finite scale."""


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
    """What changes on the way to int8, by the names that weights are stored under.

    Attributes:
        factors: [K] of weights' last axes.
        offsets: of norms.
        plain: linear weights that one scale a channel would round too coarsely.
        moments: of the inputs of linear weights, divided by their factors.
    """

    factors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    plain: frozenset[str] = frozenset()
    moments: Mapping[str, InputMoments] = field(default_factory=dict)

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
        """SHA-256 of all of it, but for the values of moments, which differ a little from sweep to sweep."""
        digest = hashlib.sha256(repr((sorted(self.plain), sorted(self.moments))).encode())
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


def plan_smoothing(checkpoint: Checkpoint, found: Calibration, alpha: float | None) -> Smoothing:
    """The factors of every weight that changes, and the moments of what linear weights are given.

    Args:
        checkpoint: what is packed.
        found: by a sweep.
        alpha: see `smoothing_scales`; None changes no weight.

    Raises:
        InputError: a norm or linear weight that is not stored as one tensor, or no norm at all.
    """
    factors: dict[str, torch.Tensor] = {}
    offsets: dict[str, float] = {}
    for maxima in found.norms if alpha is not None else ():
        if f"{maxima.norm}.weight" not in checkpoint.weights:
            # A layer beyond those that are kept.
            continue
        assert alpha is not None
        scales = smoothing_scales(maxima.activations, maxima.weights, alpha)
        for tensor in _tensors_of_norm(checkpoint, maxima.norm):
            factors[tensor] = 1 / scales
            offsets[tensor] = maxima.offset if tensor.endswith(".weight") else 0.0
        for linear in maxima.linears:
            factors[_stored_name(checkpoint, f"{linear}.weight")] = scales
    if alpha is not None and not factors:
        raise InputError(
            f"--calibrate: no norm of {checkpoint.path} is read by linear modules alone; "
            "expected a decoder like Llama's, without experts"
        )
    moments = dict(_moments_by_weight(checkpoint, found.inputs, factors))
    return Smoothing(factors=factors, offsets=offsets, moments=moments)


def _moments_by_weight(
    checkpoint: Checkpoint, inputs: Iterable[InputMoments], factors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, InputMoments]]:
    """The moments of every linear weight that is stored as one matrix, as wide as its inputs."""
    for moments in inputs:
        for linear in moments.linears:
            source = checkpoint.weights.get(f"{linear}.weight")
            weight = None if source is None else source.single
            if weight is not None and weight.shape[1:] == (moments.num_inputs,):
                scales = factors.get(weight.name)
                yield weight.name, moments if scales is None else moments.divided_by(scales)


def find_outlier_weights(weights: Iterable[StoredWeight], reader: TensorReader) -> frozenset[str]:
    """Names of the matrices that one scale a channel rounds by more than LARGEST_ERROR; reads each once.

    Source: arXiv 2408.15301, which finds such weights in under 3% of Llama-3-70B's layers, and that int8 is
    right again once these alone are treated otherwise.
    """
    return frozenset(
        weight.name for weight in weights if rounding_error(_decode(weight, reader)) > LARGEST_ERROR
    )


def rounding_error(weight_NK: torch.Tensor) -> float:
    """RMS of what int8 with a scale a channel changes, over the spread of the float32 weight [N, K].

    The spread is the standard deviation of a normal distribution with the same median of absolute values,
    which a few outliers do not change. Peak extra memory: three times the weight's.
    """
    codes_NK, scale_N = quantize_weight(weight_NK)
    error_NK = codes_NK * scale_N[:, None] - weight_NK
    spread = (weight_NK.abs().median() / MEDIAN_OF_NORMAL).clamp(min=SMALLEST)
    return float(error_NK.square().mean().sqrt() / spread)


def _decode(weight: StoredWeight, reader: TensorReader) -> torch.Tensor:
    parts = {role: reader.read(part) for role, part in weight.parts.items()}
    return weight.decode(parts, torch.empty(weight.shape, dtype=torch.float32))


def _tensors_of_norm(checkpoint: Checkpoint, norm: str) -> list[str]:
    names = [f"{norm}.{part}" for part in ("weight", "bias")]
    return [_stored_name(checkpoint, name) for name in names if name in checkpoint.weights]


def _stored_name(checkpoint: Checkpoint, name: str) -> str:
    single = checkpoint.require(name).single
    if single is None:
        raise InputError(f"--calibrate: {name} is put together of several tensors; expected one")
    return single.name
