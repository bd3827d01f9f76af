"""The oracle of the fused functions: float64 from end to end, nothing rounded on the way. Tests only.

Legend: D model dim, N heads, T tokens, H head dim, R rotated features, F FFN.
"""

from __future__ import annotations

import math

import torch

from strata.kernels.elementwise.functions import Activation, NormSettings


def reference_rms_norm(x: torch.Tensor, weight: torch.Tensor, settings: NormSettings) -> torch.Tensor:
    """Row by row, float64 [T, D]."""
    rows = [row / math.sqrt(float((row * row).mean()) + settings.eps) for row in x.double()]
    return torch.stack(rows) * (weight.double() + settings.offset)


def reference_rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[N, T, H] by cos and sin [T, R]: feature i turns with feature i + R / 2, float64."""
    half = cos.shape[-1] // 2
    given, cos, sin = states.double(), cos.double(), sin.double()
    turned = given.clone()
    for i in range(half):
        first, second = given[..., i], given[..., half + i]
        turned[..., i] = first * cos[:, i] - second * sin[:, i]
        turned[..., half + i] = second * cos[:, half + i] + first * sin[:, half + i]
    return turned


def reference_gated(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """activation(gate) * up from the definitions, float64.

    Source: Hendrycks and Gimpel 2016 for both forms of GELU.
    """
    x = gate.double()
    if activation == "silu":
        activated = x / (1 + torch.exp(-x))
    elif activation == "gelu_tanh":
        activated = x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        activated = x / 2 * torch.special.erfc(-x / math.sqrt(2))
    return activated * up.double()
