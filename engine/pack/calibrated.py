"""What a sweep of real questions tells a pack of a decoder's layers. Knows no way of finding it out.

Legend: K inputs of a linear weight, B inputs whose moments are kept with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


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
class InputMoments:
    """How the inputs of linear modules go together.

    Attributes:
        linears: paths of the modules that read them ("layers.3.mlp.down_proj").
        num_inputs: K.
        blocks: float32 [ceil(K / B), B, B], sums of x x^T of each B inputs; zeros beyond K.
    """

    linears: tuple[str, ...]
    num_inputs: int
    blocks: torch.Tensor

    def divided_by(self, factors_K: torch.Tensor) -> InputMoments:
        """Of inputs that were divided by factors."""
        num_blocks, size, _ = self.blocks.shape
        padding = num_blocks * size - self.num_inputs
        factors = torch.nn.functional.pad(factors_K, (0, padding), value=1.0).view(num_blocks, size)
        return replace(self, blocks=self.blocks / factors[:, :, None] / factors[:, None, :])


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """All that was found."""

    norms: Sequence[NormMaxima] = ()
    inputs: Sequence[InputMoments] = ()


def merge_maxima(found: Sequence[NormMaxima]) -> NormMaxima:
    """The maxima of several workers, which saw different tokens of one norm."""
    activations = torch.stack([maxima.activations for maxima in found]).amax(0)
    return replace(found[0], activations=activations)


def merge_moments(found: Sequence[InputMoments]) -> InputMoments:
    """The moments of several workers, which saw different tokens of the same inputs."""
    return replace(found[0], blocks=torch.stack([moments.blocks for moments in found]).sum(0))
