"""What fused element-wise functions are asked, and the form in which a kind of device offers its own.

Legend: T tokens, D model dim, N query heads, K kv heads, H head dim, R rotated features, F FFN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Activation = Literal["silu", "gelu_tanh", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh", "gelu")

Projection = Callable[[torch.Tensor], torch.Tensor]
"""x [..., D] -> [..., F]: a linear module, or what stands for one."""


@dataclass(frozen=True, kw_only=True)
class NormSettings:
    """How a family's RMSNorm multiplies by its weight.

    Attributes:
        eps: added to the mean square.
        offset: added to the weight: 1 in Gemma's.
        rounds_first: the normalised states are rounded to the compute dtype before the product, as in
            Llama's.
    """

    eps: float
    offset: float
    rounds_first: bool


NormFunction = Callable[[torch.Tensor, torch.Tensor, NormSettings], torch.Tensor]
"""(x [..., D], weight [D]) -> [..., D] in x's dtype."""

RotateFunction = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]
"""(query [1, N, T, H], key [1, K, T, H], cos [1, T, R], sin [1, T, R]) -> both rotated, feature i with
feature i + R / 2; the last H - R features are left as they are."""

GatedFunction = Callable[[torch.Tensor, Projection, Projection, Activation], torch.Tensor]
"""(x [..., D], gate, up) -> activation(gate(x)) * up(x), [..., F]. It is given the projections, not what they
give, so that a device can fuse the activation with a product."""


@dataclass(frozen=True, kw_only=True)
class FusedFunctions:
    """Fused functions of a kind of device; what is None stays as the family computes it.

    Attributes:
        name: what records call them.
        refusal: (device, dtype) -> why they cannot be used there, None where they can.
    """

    name: str
    refusal: Callable[[torch.device, torch.dtype], str | None]
    rms_norm: NormFunction | None = None
    rotate: RotateFunction | None = None
    gated: GatedFunction | None = None
