"""torch's attention on a simulated card: each fused kernel's result by definition, and which one it would be.

Shape suffixes: B batch, N heads, T query rows, C keys, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from .accounts import ACCOUNTS
from .settings import SETTINGS
from .streams import current_stream
from .tensors import DeviceTensor, on_device, tensors_in, values_of

SDPA = "aten::scaled_dot_product_attention"
EFFICIENT = "aten::_efficient_attention_forward"
FLASH = "aten::_flash_attention_forward"
ATTENTION = {SDPA, EFFICIENT, FLASH}

CAUSAL_FROM_TOP_LEFT, CAUSAL_FROM_BOTTOM_RIGHT = 1, 2
"""`custom_mask_type` of the memory-efficient kernel (sdp_utils.h)."""


def attend(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One call of an attention kernel, computed in float32."""
    tensors = [one for one in tensors_in((tuple(args), kwargs)) if isinstance(one, DeviceTensor)]
    device = tensors[0].device
    stream = current_stream(device).launch()
    for tensor in tensors:
        tensor.access(stream, is_write=False)
    given = values_of(tuple(args)), values_of(kwargs)
    lse = torch.empty(0)
    if name == SDPA:
        output = _sdpa(*given[0], **given[1])
    elif name == EFFICIENT:
        output = _efficient(*given[0], **given[1])
    else:
        output, lse = _flash(*given[0], **given[1])
    made, made_lse = on_device(output, device, stream), on_device(lse, device, stream)
    for one in (made, made_lse):
        one.access(stream, is_write=True)
    # What inference does not use: the random state, and the memory-efficient kernel's log-sum-exp.
    unused = [on_device(torch.empty(0), device, stream) for _ in range(3)]
    return {SDPA: made, EFFICIENT: (made, *unused, 0, 0), FLASH: (made, made_lse, *unused)}[name]


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    ACCOUNTS.count(ACCOUNTS.kernels, f"sdpa ({sdpa_backend(query, key, attn_mask, is_causal=is_causal)})")
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # torch makes an additive mask of the query's dtype: zeros, minus infinity, where.
        ACCOUNTS.count(ACCOUNTS.kernels, "sdpa mask", 3)
    mask = attn_mask.float() if attn_mask is not None and attn_mask.dtype != torch.bool else attn_mask
    with torch._C.DisableTorchFunctionSubclass(), torch._C._DisableTorchDispatch():
        return scaled_dot_product_attention(
            query.float(),
            key.float(),
            value.float(),
            attn_mask=mask,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        ).to(query.dtype)


def sdpa_backend(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, *, is_causal: bool
) -> str:
    """Which kernel torch takes where none is named. Source: sdp_utils.cpp of torch 2.13."""
    major, head_dim = SETTINGS.capability[0], query.shape[-1]
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    is_square = not is_causal or query.shape[2] == key.shape[2]
    if major in (9, 10) and is_half and head_dim <= 256 and head_dim % 8 == 0:
        return "cudnn"
    if major >= 8 and is_half and mask is None and head_dim <= 256 and is_square:
        return "flash"
    is_known = query.dtype != torch.bfloat16 or major >= 8
    if is_known and query.shape[1] == key.shape[1] and head_dim % (8 if is_half else 4) == 0:
        return "efficient"
    return "math"


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    dropout_p: float,
    custom_mask_type: int,
    compute_log_sumexp: bool = False,
    *,
    scale: float | None = None,
    seqlen_k: torch.Tensor | None = None,
    window_size: int | None = None,
) -> torch.Tensor:
    """[B, T, N, H]; sequences lie behind each other in a batch of one where there are `cu_seqlens`."""
    ACCOUNTS.count(ACCOUNTS.kernels, "attention (efficient)")
    for states in (query, key):  # what kernel_forward.h wants of rows and heads
        if states.stride(1) % 4 or (states.shape[2] > 1 and states.stride(2) % 4):
            raise RuntimeError(f"not correctly aligned: {list(states.shape)} with strides {states.stride()}")
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for rows, keys in _segments(cu_seqlens_q, cu_seqlens_k, query.shape[1], key.shape[1]):
        visible = _visible(rows, keys, custom_mask_type, window_size)
        output[:, rows] = _segment(query[:, rows], key[:, keys], value[:, keys], visible, scale)
    return output


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor | None,
    cum_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, N, H] of sequences behind each other, or [B, T, N, H]; causal from the bottom right. And [N, T]."""
    ACCOUNTS.count(ACCOUNTS.kernels, "attention (flash)")
    packed = query.dim() == 3
    query, key, value = (one[None] if packed else one for one in (query, key, value))
    window = None if window_size_left in (None, -1) else window_size_left + 1
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = torch.empty(query.shape[2], query.shape[1])
    for rows, keys in _segments(cum_seq_q, cum_seq_k, query.shape[1], key.shape[1]):
        visible = _visible(rows, keys, CAUSAL_FROM_BOTTOM_RIGHT if is_causal else 0, window)
        given = query[:, rows], key[:, keys], value[:, keys]
        output[:, rows] = _segment(*given, visible, scale)
        lse[:, rows] = _scores(*given[:2], visible, scale).logsumexp(-1)[0]
    return (output[0] if packed else output), lse


def _segments(
    starts_q: torch.Tensor | None, starts_k: torch.Tensor | None, num_rows: int, num_keys: int
) -> list[tuple[slice, slice]]:
    if starts_q is None or starts_k is None:
        return [(slice(0, num_rows), slice(0, num_keys))]
    rows, keys = (pairwise(starts.tolist()) for starts in (starts_q, starts_k))
    return [(slice(*one), slice(*other)) for one, other in zip(rows, keys, strict=True)]


def _visible(rows: slice, keys: slice, mask_type: int, window: int | None) -> torch.Tensor:
    """[T, C], whether a row of a sequence sees a key of it."""
    num_rows, num_keys = rows.stop - rows.start, keys.stop - keys.start
    offset = num_keys - num_rows if mask_type == CAUSAL_FROM_BOTTOM_RIGHT else 0
    distance = torch.arange(num_rows)[:, None] + offset - torch.arange(num_keys)[None]
    visible = distance >= 0 if mask_type else torch.ones(num_rows, num_keys, dtype=torch.bool)
    return visible & (distance < window) if window else visible


def _segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """[B, T, N, H] of one sequence; heads of keys are shared by groups of query heads."""
    wide = value.float().transpose(1, 2).repeat_interleave(query.shape[2] // value.shape[2], dim=1)
    weights = _scores(query, key, visible, scale).softmax(-1).nan_to_num(0.0)
    return (weights @ wide).transpose(1, 2).to(query.dtype)


def _scores(
    query: torch.Tensor, key: torch.Tensor, visible: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """[B, N, T, C] in float32, -inf where a row does not see a key."""
    query, key = (one.float().transpose(1, 2) for one in (query, key))
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    return scores.masked_fill(~visible, float("-inf"))
