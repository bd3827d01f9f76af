"""The oracle: attention under a dense mask in float64. Slow, obvious, used by tests only.

Shapes: query [N, T, H], key and value [K, C, H], visible [T, C] bool; N is a multiple of K.
"""

from __future__ import annotations

import torch

from strata.kernels.prefix_attention.backend import AttentionSettings


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    settings: AttentionSettings,
) -> torch.Tensor:
    """softmax(cap(scaling * q k^T) restricted to what is visible) v, as [T, N, H] float64."""
    groups = query.shape[0] // key.shape[0]
    k_NCH = key.double().repeat_interleave(groups, dim=0)
    v_NCH = value.double().repeat_interleave(groups, dim=0)
    scores = settings.scaling * query.double() @ k_NCH.transpose(1, 2)
    if settings.softcap is not None:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return (weights @ v_NCH).transpose(0, 1)
