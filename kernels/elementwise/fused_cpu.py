"""The functions on CPUs with AMX in bfloat16: fewer passes over memory, gates inside oneDNN's products.

A bfloat16 product takes so little time there that what lies between products takes as long. A gate is two
products, one with its activation and one with the multiplication in it, applied to float32 sums before they
are rounded; norms and rotations are what torch does with the fewest passes.
Legend: T tokens, D model dim, N heads, H head dim, R rotated features, F FFN.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

from strata.kernels.elementwise.functions import Activation, FusedFunctions, NormSettings, Projection
from strata.kernels.elementwise.plain import activate

ONEDNN_ACTIVATIONS: dict[Activation, tuple[str, str]] = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
}
"""Name and algorithm."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, settings: NormSettings) -> torch.Tensor:
    """x [..., D] over its root mean square, times weight [D] + offset, in x's dtype; as `plain.rms_norm`."""
    wide = x.to(torch.float32, copy=True)
    squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    wide *= squares.div_(x.shape[-1]).add_(settings.eps).rsqrt_()
    if settings.rounds_first:
        return wide.to(x.dtype).mul_(weight + settings.offset if settings.offset else weight)
    return wide.mul_(weight.to(torch.float32) + settings.offset).to(x.dtype)


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of query [1, N, T, H] and key [1, K, T, H] by cos, sin [1, T, R], as `plain` does."""
    return _rotate_one(query, cos[:, None], sin[:, None]), _rotate_one(key, cos[:, None], sin[:, None])


def _rotate_one(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    width = cos.shape[-1]
    half = width // 2
    first, second = states[..., :half], states[..., half:width]
    rotated = torch.empty_like(states)
    torch.mul(first, cos[..., :half], out=rotated[..., :half])
    rotated[..., :half].addcmul_(second, sin[..., :half], value=-1)
    torch.mul(second, cos[..., half:], out=rotated[..., half:width])
    rotated[..., half:width].addcmul_(first, sin[..., half:])
    if width < states.shape[-1]:
        rotated[..., width:] = states[..., width:]
    return rotated


def gated(x: torch.Tensor, gate: Projection, up: Projection, activation: Activation) -> torch.Tensor:
    """activation(gate(x)) * up(x), [..., F]: two products where both projections are plain linear modules."""
    if not (_is_plain(gate) and _is_plain(up)):
        return activate(gate(x), activation).mul_(up(x))
    name, algorithm = ONEDNN_ACTIVATIONS[activation]
    opened = torch.ops.mkldnn._linear_pointwise(
        x, gate.weight, gate.bias, name, [1.0] if name == "swish" else [], algorithm
    )
    return torch.ops.mkldnn._linear_pointwise.binary(x, opened, up.weight, up.bias, "mul")


def _is_plain(projection: Projection) -> TypeGuard[nn.Linear]:
    """Whether it does what its weight says and nobody watches it."""
    return (
        type(projection) is nn.Linear and not projection._forward_hooks and not projection._forward_pre_hooks
    )


def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"{device} is no CPU"
    if dtype != torch.bfloat16 or not torch.cpu._is_amx_tile_supported():
        return "on CPUs only bfloat16 with AMX is fused"
    return None


FUSED_ON_CPU = FusedFunctions(name="onednn", refusal=_refusal, rms_norm=rms_norm, rotate=rotate, gated=gated)
