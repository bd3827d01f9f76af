"""What a family does to its logits after the vocabulary projection: a scale, then a soft cap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

MULTIPLYING_BY_LOGITS_SCALING = ("hyperclovax",)
"""Families that multiply by `logits_scaling`; all others divide by it."""


@dataclass(frozen=True, kw_only=True)
class FinalLogits:
    """logits -> softcap * tanh(scale * logits / softcap); without a cap, scale * logits."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] as the family leaves them."""
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


def final_logits(config: PreTrainedConfig) -> FinalLogits:
    """What the family of a decoder's config does; the rehearsal compares it with transformers."""
    scaling = getattr(config, "logits_scaling", None) or 1.0
    if config.model_type not in MULTIPLYING_BY_LOGITS_SCALING:
        scaling = 1.0 / scaling
    return FinalLogits(
        scale=scaling * (getattr(config, "logit_scale", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )
