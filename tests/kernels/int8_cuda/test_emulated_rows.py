"""The CUDA kernel that rounds rows to int8, run on the CPU: its codes as torch's, its norm as float64's."""

from __future__ import annotations

import pytest
import torch

from strata.kernels.int8_linear.quantize import quantize_activations

from ..int8_work import FLOAT32_EPS, INFINITY
from .conftest import Emulate

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SIZES = ((1, 16), (5, 48), (3, 1040), (2, 4112))
EPSILON = 1e-5


def random_rows(size: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(size, generator=torch.Generator().manual_seed(seed + sum(size)))
    return (rows * torch.logspace(-3, 2, len(rows))[:, None]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_codes_are_torchs(emulate: Emulate, size: tuple[int, int], dtype: torch.dtype) -> None:
    x = random_rows(size, dtype)
    x[0, 3] = 0
    x[-1] = 0
    expected = quantize_activations(x, INFINITY)
    codes, scale, rounded, _ = emulate(75, dtype).quantize_rows(x)
    assert torch.equal(scale, expected.scale_T)
    assert torch.equal(codes, expected.codes_TK)
    assert torch.equal(rounded, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_that_are_skipped(emulate: Emulate, dtype: torch.dtype) -> None:
    x = random_rows((9, 128), dtype)
    expected = quantize_activations(x)
    assert 0 < len(expected.outlier_columns) <= 8
    is_skipped = torch.zeros(128, dtype=torch.uint8)
    is_skipped[expected.outlier_columns] = 1
    codes, scale, _, _ = emulate(75, dtype).quantize_rows(x, is_skipped_D=is_skipped)
    assert torch.equal(scale, expected.scale_T)
    assert torch.equal(codes, expected.codes_TK)


@pytest.mark.parametrize("poison", [INFINITY, -INFINITY, float("nan")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_of_what_is_not_finite(emulate: Emulate, dtype: torch.dtype, poison: float) -> None:
    x = random_rows((3, 64), dtype)
    x[1, 40] = poison
    _, scale, _, _ = emulate(75, dtype).quantize_rows(x)
    assert scale[[0, 2]].isfinite().all()
    assert not scale[1].isfinite()


def test_subnormal_rows(emulate: Emulate) -> None:
    x = torch.full((1, 16), 1e-42)
    codes, scale, _, _ = emulate(75, torch.float32).quantize_rows(x)
    assert scale.item() == torch.finfo(torch.float32).tiny
    assert codes.tolist() == [[0] * 16]


@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_norm(emulate: Emulate, size: tuple[int, int], dtype: torch.dtype, with_residual: bool) -> None:
    """Llama's: the mean in float32, rounded before the weight and after it. Codes are of what was rounded."""
    x, weight = random_rows(size, dtype), (1 + random_rows((1, size[1]), dtype, seed=2)[0]).to(dtype)
    residual = random_rows(size, dtype, seed=3) if with_residual else None
    found = emulate(75, dtype).quantize_rows(x, residual_TD=residual, weight_D=weight, epsilon=EPSILON)
    codes, scale, normed, total = found
    summed = x if residual is None else x + residual
    if residual is not None:
        assert torch.equal(total, summed)
    exact = summed.double()
    exact = exact * (exact.square().mean(1, keepdim=True) + EPSILON).rsqrt() * weight.double()
    # Rounded twice, and half a step more where float32's mean tips a tie.
    tolerance = 2 * torch.finfo(dtype).eps * exact.abs() + 8 * FLOAT32_EPS * exact.abs()
    assert ((normed.double() - exact).abs() <= tolerance + torch.finfo(dtype).smallest_normal).all()
    expected = quantize_activations(normed, INFINITY)
    assert torch.equal(codes, expected.codes_TK)
    assert torch.equal(scale, expected.scale_T)


def test_mistakes_are_found(emulate: Emulate) -> None:
    """Without the barrier a thread reads what other warps have not yet found."""
    from .test_emulated_gemm import SOURCE

    old = "    __syncthreads();\n    word ="
    assert SOURCE.count(old) == 1
    x = random_rows((4, 4112), torch.float32)
    kernels = emulate(75, torch.float32, SOURCE.replace(old, "    word ="))
    found = [kernels.quantize_rows(x, seed=seed)[1] for seed in range(3)]
    assert not all(torch.equal(scale, quantize_activations(x, INFINITY).scale_T) for scale in found)
