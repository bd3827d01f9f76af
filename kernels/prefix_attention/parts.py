"""Keys gathered for a variable-length kernel, and parts of attention merged: one launch each on a card.

As torch operators: a Triton kernel on CUDA, plain torch on CPUs, shapes on the meta device. Plain torch, too,
on cards without Triton.
Legend: T query rows, R of them, N query heads, K kv heads, C key space, J gathered keys, H head dim.
Source of the merging: Rabe & Staats 2021, Self-attention does not need O(n^2) memory.
"""

from __future__ import annotations

import torch

from strata.kernels.triton_support.operators import has_kernels

OPERATORS = torch.library.Library("strata", "FRAGMENT")
OPERATORS.define("gather_keys(Tensor states, Tensor index) -> Tensor")
OPERATORS.define(
    "merge_attention(Tensor(a!) attended, Tensor lse, Tensor other, Tensor other_lse, Tensor rows) -> ()"
)


def gather_keys(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Keys or values [K, J, H] of a key space [K, C, H], at an index [J] int64; autograd sees through it."""
    is_moved = states.stride(2) == 1 and not (torch.is_grad_enabled() and states.requires_grad)
    if is_moved and _has_operators(states.device):
        gathered: torch.Tensor = torch.ops.strata.gather_keys(states, index)
        return gathered
    return _gather_plainly(states, index)


def merge_attention(
    attended: torch.Tensor,
    lse: torch.Tensor,
    other: torch.Tensor,
    other_lse: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    """Makes of attention over some keys what it is over these and others, in place.

    Args:
        attended: [T, N, H] over each row's own keys, as a kernel left it: in the order of its query's axes,
            features contiguous; changed at `rows`.
        lse: [N, T] float32, contiguous, log-sum-exp of its scores.
        other: [R, N, H] over the other keys.
        other_lse: [N, R] float32, contiguous.
        rows: [R] int64, which rows of `attended` have other keys; each once.
    """
    if _has_operators(attended.device):
        torch.ops.strata.merge_attention(attended, lse, other.contiguous(), other_lse, rows)
    else:
        _merge_plainly(attended, lse, other, other_lse, rows)


def _has_operators(device: torch.device) -> bool:
    """All devices but cards without Triton; on CPUs they are plain torch, and count as what they are."""
    return device.type != "cuda" or has_kernels(device)


def _gather_plainly(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return states.index_select(1, index)


def _merge_plainly(
    attended: torch.Tensor,
    lse: torch.Tensor,
    other: torch.Tensor,
    other_lse: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    weight_RN1 = torch.sigmoid(other_lse - lse[:, rows]).T[..., None]
    own = attended[rows].to(weight_RN1.dtype)
    attended[rows] = (own + (other.to(weight_RN1.dtype) - own) * weight_RN1).to(attended.dtype)


def _gather_on_card(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    from strata.kernels.prefix_attention.triton_kernels import launch_gather_keys

    return launch_gather_keys(states, index).transpose(0, 1)


def _merge_on_card(
    attended: torch.Tensor,
    lse: torch.Tensor,
    other: torch.Tensor,
    other_lse: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    from strata.kernels.prefix_attention.triton_kernels import launch_merge_attention

    launch_merge_attention(attended, lse, other, other_lse, rows)


def _gathered_shape(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    num_heads, _, head_dim = states.shape
    return states.new_empty(len(index), num_heads, head_dim).transpose(0, 1)


def _nothing(*tensors: torch.Tensor) -> None:
    """What merging changes of a shape."""


OPERATORS.impl("gather_keys", _gather_plainly, "CPU")
OPERATORS.impl("gather_keys", _gathered_shape, "Meta")
OPERATORS.impl("gather_keys", _gather_on_card, "CUDA")
OPERATORS.impl("merge_attention", _merge_plainly, "CPU")
OPERATORS.impl("merge_attention", _nothing, "Meta")
OPERATORS.impl("merge_attention", _merge_on_card, "CUDA")
