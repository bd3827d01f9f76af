"""Gradients of prefix attention against the float64 oracle under autograd, and gradcheck."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from strata.kernels.prefix_attention.differentiable import DIFFERENTIABLE_ON_CPU
from strata.kernels.prefix_attention.reference import reference_attention
from strata.kernels.prefix_attention.sdpa import SdpaBackend
from strata.kernels.prefix_attention.varlen import EFFICIENT

from .attention_work import Work, make_work, poisoned_memory

__all__ = ["poisoned_memory"]


def gradients_of(
    attention: Callable[..., torch.Tensor], work: Work, dtype: torch.dtype, *rest: object
) -> tuple[torch.Tensor, ...]:
    """Output and gradients of query, key, value under one fixed random upstream gradient."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in work.inputs]
    output = attention(*leaves, *rest)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output.backward(upstream.to(output.dtype))
    return (output.detach(), *(leaf.grad for leaf in leaves))


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    "backend", [DIFFERENTIABLE_ON_CPU, SdpaBackend(), EFFICIENT], ids=["tiled", "sdpa", "varlen"]
)
@pytest.mark.parametrize(("rows", "groups", "softcap"), [(1, 1, None), (133, 4, None), (133, 2, 5.0)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_gradients_equal_those_of_the_oracle(backend, rows, groups, softcap, dtype, bound):
    if backend is not DIFFERENTIABLE_ON_CPU and softcap is not None:
        pytest.skip("SDPA and torch's variable-length kernels have no soft-capping")
    if backend is EFFICIENT and dtype == torch.float64:
        pytest.skip("CUDA's kernels know no float64")
    work = make_work(rows, torch.float64, groups=groups, head_dim=16)
    wanted = work.settings(softcap)
    exact = gradients_of(reference_attention, work, torch.float64, work.visible, wanted)
    found = gradients_of(backend.attend, work, dtype, work.tiles, wanted)
    for name, mine, theirs in zip(("output", "query", "key", "value"), found, exact, strict=True):
        assert relative_error(mine, theirs) < bound, name


def test_bfloat16_gradients_are_as_good_as_those_of_torch():
    work = make_work(133, torch.bfloat16, groups=4)
    dense = torch.where(work.visible, 0.0, float("-inf")).to(torch.bfloat16)

    def torch_attention(query, key, value):
        keys, values = (states.repeat_interleave(4, dim=0) for states in (key, value))
        found = scaled_dot_product_attention(query, keys, values, attn_mask=dense, scale=work.scaling)
        return found.transpose(0, 1)

    exact = gradients_of(reference_attention, work, torch.float64, work.visible, work.settings())
    theirs = gradients_of(torch_attention, work, torch.bfloat16)
    mine = gradients_of(DIFFERENTIABLE_ON_CPU.attend, work, torch.bfloat16, work.tiles, work.settings())
    for name, ours, other, truth in zip(
        ("output", "query", "key", "value"), mine, theirs, exact, strict=True
    ):
        assert relative_error(ours, truth) <= 2 * relative_error(other, truth) + 2**-9, name


def test_gradcheck_of_tiled_attention():
    work = make_work(7, torch.float64, groups=2, head_dim=4, num_kv_heads=1)
    leaves = [tensor.requires_grad_() for tensor in work.inputs]
    assert torch.autograd.gradcheck(
        lambda *inputs: DIFFERENTIABLE_ON_CPU.attend(*inputs, work.tiles, work.settings(3.0)), leaves
    )
