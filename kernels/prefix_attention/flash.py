"""FlashAttention as variable-length calls: the one inside torch, which tells log-sum-exps, and the package.

Legend: T query rows, N query heads, K kv heads, J gathered keys, H head dim. Query [T, N, H], keys and values
[K, J, H], the result [T, N, H], log-sum-exps [N, T] float32.
Source: Dao 2023, FlashAttention-2 (causal from the bottom right since its release 2.1).
"""

from __future__ import annotations

import importlib

import torch

from strata.kernels.prefix_attention.backend import AttentionSettings
from strata.kernels.prefix_attention.sequences import SequenceCall


def attend_flash(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    call: SequenceCall,
    settings: AttentionSettings,
) -> torch.Tensor:
    """Through the FlashAttention-2 inside torch."""
    return attend_flash_part(query, keys, values, call, settings, True)[0]


def attend_flash_part(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    call: SequenceCall,
    settings: AttentionSettings,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, with log-sum-exps.

    The longest sequence is given as two rows at least: of single ones, whose query heads share keys, the
    kernel swaps rows and heads (flash_api.cpp, `seqlenq_ngroups_swapped`), its log-sum-exps with them.
    """
    left, right = _flash_window(call.window) if is_causal else (-1, -1)
    attended, lse, *_ = torch.ops.aten._flash_attention_forward(
        query,
        keys.transpose(0, 1),
        values.transpose(0, 1),
        call.cu_seqlens_q,
        call.cu_seqlens_k,
        max(call.max_seqlen_q, 2),
        call.max_seqlen_k,
        0.0,
        is_causal,
        False,
        scale=settings.scaling,
        window_size_left=left,
        window_size_right=right,
    )
    return attended, lse


def attend_flash_attn(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    call: SequenceCall,
    settings: AttentionSettings,
) -> torch.Tensor:
    """Through the package flash-attn."""
    attended: torch.Tensor = importlib.import_module("flash_attn").flash_attn_varlen_func(
        query,
        keys.transpose(0, 1),
        values.transpose(0, 1),
        call.cu_seqlens_q,
        call.cu_seqlens_k,
        call.max_seqlen_q,
        call.max_seqlen_k,
        softmax_scale=settings.scaling,
        causal=True,
        window_size=_flash_window(call.window),
        softcap=settings.softcap or 0.0,
    )
    return attended


def _flash_window(window: int | None) -> tuple[int, int]:
    """(keys to the left of a row's own, to its right), -1 for any number."""
    return (-1 if window is None else window - 1, 0)
