"""The same functions in plain torch, with the roundings of transformers' modules; what CPUs compute.

Legend: D model dim, N heads, T tokens, H head dim, R rotated features, F FFN.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from strata.kernels.elementwise.functions import Activation, FusedFunctions, NormSettings, Projection

WIDENED = torch.float32


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, rounds_first: bool
) -> torch.Tensor:
    """x [..., D] over its root mean square, times weight [D] + offset, in x's dtype.

    Source: Zhang and Sennrich 2019; LlamaRMSNorm, GemmaRMSNorm and Olmo2RMSNorm of transformers.
    """
    wide = x.to(WIDENED)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if rounds_first:
        return (weight + offset if offset else weight) * normed.to(x.dtype)
    return ((weight.to(WIDENED) + offset) * normed).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    rounds_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of the sum, sum) of residual and x, both [..., D]; the sum is rounded to x's dtype first."""
    total = residual + x
    return rms_norm(total, weight, eps, offset, rounds_first), total


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of query [1, N, T, H] and key [1, K, T, H] by cos and sin [1, T, R].

    Source: Su et al. 2021; apply_rotary_pos_emb of transformers' Llama.
    """
    return _rotate_one(query, cos, sin), _rotate_one(key, cos, sin)


def _rotate_one(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    width = cos.shape[-1]
    turned = states[..., :width]
    first, second = turned.chunk(2, dim=-1)
    rotated = turned * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
    return rotated if width == states.shape[-1] else torch.cat((rotated, states[..., width:]), dim=-1)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """activation(gate) * up, both [..., F]."""
    return activate(gate, activation) * up


def activate(gate: torch.Tensor, activation: Activation) -> torch.Tensor:
    """SiLU or GELU, exact or by tanh."""
    if activation == "silu":
        return functional.silu(gate)
    return functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")


def _norm(x: torch.Tensor, weight: torch.Tensor, settings: NormSettings) -> torch.Tensor:
    return rms_norm(x, weight, settings.eps, settings.offset, settings.rounds_first)


def _gated(x: torch.Tensor, gate: Projection, up: Projection, activation: Activation) -> torch.Tensor:
    return gated(gate(x), up(x), activation)


PLAIN = FusedFunctions(
    name="plain", refusal=lambda device, dtype: None, rms_norm=_norm, rotate=rotate, gated=_gated
)
"""What modules are recognised by; nothing is gained by computing with it."""
