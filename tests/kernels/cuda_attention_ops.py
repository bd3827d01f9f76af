"""torch's two variable-length attention operators of CUDA, on the CPU: the same signatures, in float64.

Registered as the operators' CPU kernels, so that what the project calls on a card runs here, call arguments
and all, forward and backward; they refuse what the CUDA operators refuse. Sources: the operators' schemas and
checks in ATen/native/transformers/cuda (attention.cu, attention_backward.cu, flash_api.cpp); the formulas of
the backward pass are in Dao et al. 2022, FlashAttention, appendix B.4.
Legend: T query rows, J keys of all sequences, N query heads, K kv heads, H head dim; r, j of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

BOTTOM_RIGHT = 2
BLOCK_ROWS = 512
LIBRARY = torch.library.Library("aten", "IMPL")


@dataclass
class Asked:
    """What was asked of the operators: (name, sequences, longest rows, longest keys, window)."""

    calls: list[tuple[str, int, int, int, int | None]] = field(default_factory=list)


ASKED = Asked()


def install() -> None:
    """Registers the operators, once a process."""
    if torch._C._dispatch_has_kernel_for_dispatch_key("aten::_efficient_attention_forward", "CPU"):
        return
    LIBRARY.impl("_efficient_attention_forward", efficient_forward, "CPU")
    LIBRARY.impl("_efficient_attention_backward", efficient_backward, "CPU")
    LIBRARY.impl("_flash_attention_forward", flash_forward, "CPU")
    LIBRARY.impl("_flash_attention_backward", flash_backward, "CPU")


def efficient_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    custom_mask_type: int,
    compute_log_sumexp: bool = False,
    *,
    scale: float | None = None,
    seqlen_k: torch.Tensor | None = None,
    window_size: int | None = None,
) -> tuple[Any, ...]:
    """Query, key and value [1, rows, heads, H]; as many heads of keys as of queries."""
    assert bias is None
    assert seqlen_k is None
    assert dropout_p == 0
    assert custom_mask_type == BOTTOM_RIGHT
    assert query.dim() == 4
    assert query.shape[0] == 1
    assert query.shape[2:] == key.shape[2:]
    assert key.shape == value.shape
    assert {query.dtype} == {key.dtype, value.dtype}
    assert query.dtype in (torch.float16, torch.bfloat16, torch.float32)
    assert are_aligned(query, key)
    _check(query[0], key[0], value[0], cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    ASKED.calls.append(("efficient", len(cu_seqlens_q) - 1, max_seqlen_q, max_seqlen_k, window_size))
    output, lse = _forward(
        query[0], key[0], value[0], cu_seqlens_q, cu_seqlens_k, _scale(scale, query), window_size
    )
    seed = torch.zeros((), dtype=torch.int64)
    kept = lse.float() if compute_log_sumexp else lse.new_empty(0).float()
    return output[None], kept, seed, seed.clone(), max_seqlen_q, max_seqlen_k


def efficient_backward(
    grad_out_: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    logsumexp: torch.Tensor,
    dropout_p: float,
    philox_seed: torch.Tensor,
    philox_offset: torch.Tensor,
    custom_mask_type: int,
    bias_requires_grad: bool,
    *,
    scale: float | None = None,
    num_splits_key: int | None = None,
    window_size: int | None = None,
    shared_storage_dqdkdv: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Without a window: with one, the CUDA kernel counts from the top left."""
    assert window_size is None
    assert logsumexp.numel()
    tensors = (grad_out_[0], query[0], key[0], value[0], cu_seqlens_q, cu_seqlens_k)
    gradients = _backward(*tensors, _scale(scale, query), None)
    return (*(gradient[None] for gradient in gradients), torch.empty(0))


def flash_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **rest: object,
) -> tuple[torch.Tensor, ...]:
    """Query [T, N, H], key and value [J, K, H], in 16 bits."""
    assert dropout_p == 0
    assert not return_debug_mask
    assert not any(rest.values())
    assert window_size_right == (0 if is_causal else -1)
    assert window_size_left is not None
    assert is_causal or window_size_left == -1
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert {query.dtype} == {key.dtype, value.dtype}
    assert query.shape[2] % 8 == 0
    assert query.shape[2] <= 256
    _check(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k)
    window = None if window_size_left < 0 else window_size_left + 1
    ASKED.calls.append(
        ("flash" if is_causal else "flash without a mask", len(cum_seq_q) - 1, max_q, max_k, window)
    )
    output, lse = _forward(query, key, value, cum_seq_q, cum_seq_k, _scale(scale, query), window, is_causal)
    if max_q == 1 and query.shape[1] > key.shape[1]:
        lse.fill_(float("nan"))  # the kernel swaps rows and groups of heads, and leaves them in another order
    return output, lse.float(), torch.zeros(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)


def flash_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: torch.Tensor,
    unused: torch.Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[torch.Tensor, ...]:
    """Gradients of query, key and value."""
    window = None if window_size_left is None or window_size_left < 0 else window_size_left + 1
    return _backward(grad_out, query, key, value, cum_seq_q, cum_seq_k, _scale(scale, query), window)


def are_aligned(*states: torch.Tensor) -> bool:
    """Rows and heads of [1, rows, heads, H] begin at multiples of four elements (kernel_forward.h)."""
    return all(
        one.stride(1) % 4 == 0
        and (one.shape[2] == 1 or one.stride(2) % 4 == 0)
        and one.storage_offset() % 4 == 0
        for one in states
    )


def _scale(scale: float | None, query: torch.Tensor) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
) -> None:
    assert query.shape[1] % key.shape[1] == 0
    assert query.shape[2] == key.shape[2]
    assert all(states.stride(-1) == 1 for states in (query, key, value))
    assert len(cu_q) == len(cu_k) > 1
    for starts, total, longest in ((cu_q, len(query), max_q), (cu_k, len(key), max_k)):
        assert starts.dtype == torch.int32
        assert starts.is_contiguous()
        assert starts[0] == 0
        assert starts[-1] == total
        is_spared = starts is cu_q and (longest, starts.diff().max()) == (2, 1)
        assert starts.diff().max() == longest or is_spared
        assert starts.diff().min() > 0


def _sequences(
    cu_q: torch.Tensor, cu_k: torch.Tensor, is_causal: bool = True
) -> Iterator[tuple[slice, slice]]:
    """Rows and keys of each sequence; of a long one in blocks of rows, each with the keys up to its last."""
    for (first, last), (start, end) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        for row in range(first, last, BLOCK_ROWS):
            stop = min(last, row + BLOCK_ROWS)
            yield slice(row, stop), slice(start, end - last + stop if is_causal else end)


def _wide(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[rows, heads, H] as float64 [N, rows, H]."""
    return states.double().repeat_interleave(num_heads // states.shape[1], dim=1).transpose(0, 1)


def _weights(
    query_NrH: torch.Tensor, key_NjH: torch.Tensor, scale: float, window: int | None, is_causal: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax [N, r, j] and its log-sum-exp [N, r]."""
    rows, keys = query_NrH.shape[1], key_NjH.shape[1]
    seen = torch.ones(rows, keys, dtype=torch.bool)
    if is_causal:
        seen = seen.tril(keys - rows)
    if window is not None:
        seen = seen.triu(keys - rows - window + 1)
    scores = (scale * query_NrH @ key_NjH.transpose(1, 2)).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1), scores.logsumexp(-1)


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    window: int | None,
    is_causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    num_heads = query.shape[1]
    output = torch.empty_like(query).fill_(float("nan"))  # in the order of the query's axes
    lse = torch.full((num_heads, len(query)), float("nan"), dtype=torch.float64)
    q, k, v = (_wide(states, num_heads) for states in (query, key, value))
    for rows, keys in _sequences(cu_q, cu_k, is_causal):
        weights, lse[:, rows] = _weights(q[:, rows], k[:, keys], scale, window, is_causal)
        output[rows] = (weights @ v[:, keys]).transpose(0, 1).to(query.dtype)
    return output, lse


def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_heads, num_kv_heads = query.shape[1], key.shape[1]
    g, q, k, v = (_wide(states, num_heads) for states in (grad, query, key, value))
    d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, keys in _sequences(cu_q, cu_k):
        weights, _ = _weights(q[:, rows], k[:, keys], scale, window)
        d_v[:, keys] += weights.transpose(1, 2) @ g[:, rows]
        d_weights = g[:, rows] @ v[:, keys].transpose(1, 2)
        d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True)) * scale
        d_q[:, rows] = d_scores @ k[:, keys]
        d_k[:, keys] += d_scores.transpose(1, 2) @ q[:, rows]
    folded = (states.unflatten(0, (num_kv_heads, -1)).sum(1) for states in (d_k, d_v))
    return (
        d_q.transpose(0, 1).to(query.dtype),
        *(states.transpose(0, 1).to(key.dtype) for states in folded),
    )
