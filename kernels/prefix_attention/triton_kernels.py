"""What is moved and merged around a variable-length kernel, as Triton kernels. Imports triton.

Without tl.dot, so that they compile for sm75. Sizes that vary from call to call are not specialised on.
Legend: T query rows, R of them, N query heads, K kv heads, C key space, J gathered keys, H head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KEYS, HEADS = 8, 4
"""Keys and heads that a program gathers."""

MERGED_BLOCK = 1024


@triton.jit(do_not_specialize=["num_keys", "head_stride"])
def gather_keys_kernel(
    states,
    index,
    out,
    num_keys,
    head_stride,
    key_stride,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [J, K, H] = states [K, C, H] at the keys of an index [J]."""
    place = tl.program_id(0).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    key = tl.load(index + place, mask=place < num_keys, other=0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS).to(tl.int64)
    feature = tl.arange(0, BLOCK)[None, None, :]
    mask = (place < num_keys)[:, None, None] & (head < NUM_HEADS)[None, :, None] & (feature < HEAD_DIM)
    source = key[:, None, None] * key_stride + head[None, :, None] * head_stride + feature
    target = (place[:, None, None] * NUM_HEADS + head[None, :, None]) * HEAD_DIM + feature
    tl.store(out + target, tl.load(states + source, mask=mask), mask=mask)


@triton.jit(do_not_specialize=["num_rows", "num_others"])
def merge_attention_kernel(
    attended,
    lse,
    other,
    other_lse,
    rows,
    num_rows,
    num_others,
    row_stride,
    head_stride,
    ELEMENTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """attended [T, N, H] at rows [R] becomes what it is together with the other part [R, N, H]."""
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + place)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = element < ELEMENTS
    head = (element // HEAD_DIM).to(tl.int64)
    own_lse = tl.load(lse + head * num_rows + row, mask=mask, other=0.0)
    others_lse = tl.load(other_lse + head * num_others + place, mask=mask, other=0.0)
    weight = 1.0 / (1.0 + tl.exp(own_lse - others_lse))
    target = attended + row * row_stride + head * head_stride + element % HEAD_DIM
    own = tl.load(target, mask=mask, other=0.0).to(tl.float32)
    others = tl.load(other + place * ELEMENTS + element, mask=mask, other=0.0).to(tl.float32)
    merged = own + (others - own) * weight
    tl.store(target, merged.to(attended.dtype.element_ty), mask=mask)


def launch_gather_keys(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[J, K, H] of states [K, C, H], whose features are contiguous, at an index [J] int64."""
    num_heads, _, head_dim = states.shape
    out = states.new_empty(len(index), num_heads, head_dim)
    grid = (triton.cdiv(len(index), KEYS), triton.cdiv(num_heads, HEADS))
    with torch.cuda.device_of(states):
        gather_keys_kernel[grid](
            states,
            index,
            out,
            len(index),
            states.stride(0),
            states.stride(1),
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            KEYS=KEYS,
            HEADS=HEADS,
            BLOCK=triton.next_power_of_2(head_dim),
        )
    return out


def launch_merge_attention(
    attended: torch.Tensor,
    lse: torch.Tensor,
    other: torch.Tensor,
    other_lse: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    """Merges parts into attended [T, N, H], whose features are contiguous; the rest is, as a whole."""
    num_rows, num_heads, head_dim = attended.shape
    elements = num_heads * head_dim
    grid = (len(rows), triton.cdiv(elements, MERGED_BLOCK))
    with torch.cuda.device_of(attended):
        merge_attention_kernel[grid](
            attended,
            lse,
            other,
            other_lse,
            rows,
            num_rows,
            len(rows),
            attended.stride(0),
            attended.stride(1),
            ELEMENTS=elements,
            HEAD_DIM=head_dim,
            BLOCK=MERGED_BLOCK,
        )
