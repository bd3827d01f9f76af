"""The functions on CPUs: what torch does with the fewest passes over memory and the fewest new tensors.

With AMX a bfloat16 product takes so little time that what lies between products takes as long. There a gate
is two products of oneDNN, one with its activation and one with the multiplication in it, applied to float32
sums before they are rounded.
Legend: T tokens, D model dim, N heads, H head dim, R rotated features, F FFN.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

from strata.kernels.elementwise.functions import Activation, FusedFunctions, NormSettings, Projection

ONEDNN_ACTIVATIONS: dict[Activation, tuple[str, str]] = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
}
"""Name and algorithm."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, settings: NormSettings) -> torch.Tensor:
    """x [..., D] over its root mean square, times weight [D] + offset, in x's dtype; as `plain.rms_norm`."""
    normed = _normed(x, settings.eps) if x.dtype == torch.float32 else _normed_wide(x, settings.eps)
    if settings.rounds_first:
        return normed.to(x.dtype).mul_(weight + settings.offset if settings.offset else weight)
    return normed.mul_(weight.to(torch.float32) + settings.offset).to(x.dtype)


def _normed(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x over its root mean square; float32, every bit as `plain`'s."""
    squares = x * x
    scale = squares.mean(-1, keepdim=True).add_(eps).rsqrt_()
    return torch.mul(x, scale, out=squares)


def _normed_wide(x: torch.Tensor, eps: float) -> torch.Tensor:
    """The same of 16 bits, in float32: a norm rounds more than a mean of squares, less than x was rounded."""
    wide = x.to(torch.float32)
    squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    return wide.mul_(squares.div_(x.shape[-1]).add_(eps).rsqrt_())


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
    """activation(gate(x)) * up(x), [..., F]: two products where oneDNN's are fast and both modules plain."""
    if not (_has_fast_gates(x.dtype) and _is_plain(gate) and _is_plain(up)):
        return _activate_in_place(gate(x), activation).mul_(up(x))
    name, algorithm = ONEDNN_ACTIVATIONS[activation]
    opened = torch.ops.mkldnn._linear_pointwise(
        x, gate.weight, gate.bias, name, [1.0] if name == "swish" else [], algorithm
    )
    return torch.ops.mkldnn._linear_pointwise.binary(x, opened, up.weight, up.bias, "mul")


def _activate_in_place(opened: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "silu":
        return torch.ops.aten.silu_(opened)
    return torch.ops.aten.gelu_(opened, approximate="tanh" if activation == "gelu_tanh" else "none")


def _is_plain(projection: Projection) -> TypeGuard[nn.Linear]:
    """Whether it does what its weight says and nobody watches it."""
    return (
        type(projection) is nn.Linear and not projection._forward_hooks and not projection._forward_pre_hooks
    )


def _has_fast_gates(dtype: torch.dtype) -> bool:
    """Elsewhere oneDNN's products take longer than those that torch chooses, or compute in another way."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if device.type == "cpu" else f"{device} is no CPU"


FUSED_ON_CPU = FusedFunctions(name="cpu", refusal=_refusal, rms_norm=rms_norm, rotate=rotate, gated=gated)
