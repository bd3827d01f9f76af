"""The W8A8 linear against its float64 definition: odd shapes, poisoned memory, outliers, non-finite values.

Tolerance of the linear: the integer product is exact, so what remains is float32 rounding of the epilogue,
relative to the sum of the absolute values of its terms, and one rounding to the dtype asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from strata.kernels.int8_linear import blocked, quantize
from strata.kernels.int8_linear.blocked import has_int8_product
from strata.kernels.int8_linear.linear import MAX_K, int8_linear
from strata.kernels.int8_linear.quantize import Int8Activations, quantize_activations, quantize_weight
from strata.kernels.int8_linear.reference import int8_linear_reference

from .int8_work import DTYPES, FLOAT32_EPS, INFINITY, SHAPES, poisoned_memory, random_operands

__all__ = ["poisoned_memory"]


def assert_matches_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    threshold: float = 6.0,
    num_outliers: int | None = None,
) -> None:
    codes, scale = quantize_weight(weight)
    found = int8_linear(quantize_activations(x, threshold, num_outliers), codes, scale, bias, dtype=dtype)
    expected = int8_linear_reference(x, codes, scale, bias, threshold, num_outliers)
    no_bias = None if bias is None else bias.abs()
    magnitude = int8_linear_reference(x.abs(), codes.abs(), scale, no_bias, threshold, num_outliers)
    # Three scalings and two additions, and U + 1 roundings at most in the outlier product.
    num_roundings = 6 + max(x.shape[1] // quantize.MAX_OUTLIER_SHARE, num_outliers or 0)
    tolerance = num_roundings * FLOAT32_EPS * magnitude + 0.5 * torch.finfo(dtype).eps * expected.abs()
    tolerance += torch.finfo(dtype).smallest_normal
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert ((found.double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, weight, bias = random_operands(shape, dtype)
    assert_matches_reference(x, weight, bias, dtype)
    assert_matches_reference(x, weight, None, torch.float32, threshold=INFINITY)
    assert_matches_reference(x, weight, bias, dtype, num_outliers=min(5, shape[1]))


@pytest.mark.parametrize(("block_tokens", "block_elements"), [(1024, 1 << 21), (50, 50 * 16), (7, 7 * 24)])
def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch, block_tokens: int, block_elements: int) -> None:
    x, weight, bias = random_operands((129, 100, 61), torch.bfloat16)
    codes, scale = quantize_weight(weight)
    activations = quantize_activations(x)
    whole = int8_linear(activations, codes, scale, bias, dtype=torch.float32)
    monkeypatch.setitem(blocked.BLOCK_TOKENS, "cpu", block_tokens)
    monkeypatch.setitem(blocked.BLOCK_ELEMENTS, "cpu", block_elements)
    in_blocks = int8_linear(activations, codes, scale, bias, dtype=torch.float32)
    # Only the float32 sum over the few outlier columns may be taken in another order.
    torch.testing.assert_close(
        in_blocks, whole, rtol=4 * FLOAT32_EPS, atol=4 * FLOAT32_EPS * float(whole.abs().max())
    )


def test_largest_codes_do_not_saturate() -> None:
    """Sums far beyond int16, and beyond float32's 24 bits, in both signs."""
    num_inputs = 4099
    codes = torch.full((9, num_inputs), 127, dtype=torch.int8)
    codes[1::2] = -127
    ones = torch.ones(20)
    x = Int8Activations(
        codes_TK=codes[:1].repeat(20, 1),
        scale_T=ones,
        outlier_columns=torch.empty(0, dtype=torch.int64),
        outliers_TU=None,
    )
    found = int8_linear(x, codes, ones[:9], None, dtype=torch.float32)
    expected = torch.tensor([1.0, -1.0] * 5)[:9] * (127 * 127 * num_inputs)
    torch.testing.assert_close(found, expected.expand(20, 9), rtol=FLOAT32_EPS, atol=0)


@pytest.mark.slow
def test_right_on_a_cpu_without_vnni() -> None:
    """oneDNN told to do without VNNI saturates torch._int_mm in silence; the linear must notice."""
    test = f"{__file__}::test_largest_codes_do_not_saturate"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_float32_product_of_codes_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = random_operands((129, 100, 61), torch.bfloat16)
    monkeypatch.setattr(blocked, "has_int8_product", lambda *arguments: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    assert_matches_reference(x, weight, bias, torch.bfloat16)


@pytest.mark.parametrize("num_inputs", [64, 1024])
def test_error_stays_within_the_quantisation_step(num_inputs: int) -> None:
    """|error| <= sum over k of |x| dw + |w| dx + dx dw, dx and dw half a step; and it is not far below."""
    x, weight, bias = random_operands((33, num_inputs, 40), torch.float32)
    codes, scale = quantize_weight(weight)
    activations = quantize_activations(x, INFINITY)
    half_x, half_w = activations.scale_T.double() / 2, scale.double() / 2
    bound = half_w * x.double().abs().sum(1, keepdim=True)
    bound += half_x[:, None] * weight.double().abs().sum(1) + num_inputs * half_x[:, None] * half_w
    exact = x.double() @ weight.double().T + bias.double()
    error = (int8_linear(activations, codes, scale, bias, dtype=torch.float32).double() - exact).abs()
    assert (error <= bound + 1e-5 * exact.abs() + 1e-5).all()
    assert error.mean() > 0.01 * bound.mean() * num_inputs**-0.5


def relative_error(x: torch.Tensor, weight: torch.Tensor, threshold: float) -> float:
    codes, scale = quantize_weight(weight)
    found = int8_linear(quantize_activations(x, threshold), codes, scale, None, dtype=torch.float32)
    exact = x.double() @ weight.double().T
    return float((found.double() - exact).norm() / exact.norm())


def test_an_outlier_column_costs_no_precision() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(64, 1024, generator=generator).clamp(-5, 5)
    weight = torch.randn(96, 1024, generator=generator)
    usual = relative_error(x, weight, 6.0)
    x[:, 77] *= 100
    assert quantize_activations(x).outlier_columns.tolist() == [77]
    assert relative_error(x, weight, 6.0) < 1.3 * usual
    assert relative_error(x, weight, INFINITY) > 5 * usual


@pytest.mark.parametrize("poison", [INFINITY, -INFINITY, float("nan")])
@pytest.mark.parametrize(("threshold", "num_outliers"), [(6.0, None), (INFINITY, None), (6.0, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_finite_tokens_stay_non_finite(
    poison: float, threshold: float, num_outliers: int | None, dtype: torch.dtype
) -> None:
    x, weight, bias = random_operands((17, 40, 24), dtype)
    weight[0] = 0
    x[4, 7] = poison
    codes, scale = quantize_weight(weight)
    found = int8_linear(quantize_activations(x, threshold, num_outliers), codes, scale, bias, dtype=dtype)
    assert not found[4].isfinite().any()
    others = [token for token in range(17) if token != 4]
    assert found[others].isfinite().all()


def test_more_infinite_columns_than_outliers() -> None:
    x, weight, _ = random_operands((17, 40, 24), torch.bfloat16)
    x[4, 5:30] = INFINITY
    codes, scale = quantize_weight(weight)
    found = int8_linear(quantize_activations(x), codes, scale, None, dtype=torch.bfloat16)
    assert not found[4].isfinite().any()
    assert found[:4].isfinite().all()


@pytest.mark.parametrize("poison", [INFINITY, float("nan")])
def test_a_non_finite_weight_shows_in_its_outputs(poison: float) -> None:
    x, weight, _ = random_operands((17, 40, 24), torch.float32)
    weight[6, 2] = poison
    found = int8_linear(quantize_activations(x), *quantize_weight(weight), None, dtype=torch.float32)
    assert not found[:, 6].isfinite().any()
    assert found[:, :6].isfinite().all()


def test_bad_operands_are_named() -> None:
    x, weight, bias = random_operands((3, 33, 5), torch.float32)
    codes, scale = quantize_weight(weight)
    activations = quantize_activations(x)
    with pytest.raises(ValueError, match=r"codes_NK must be int8 \[N, 33\]"):
        int8_linear(activations, codes[:, :32], scale, None, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"scale_N must be float32 \[5\]"):
        int8_linear(activations, codes, scale[:4], None, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"bias_N must have shape \[5\]"):
        int8_linear(activations, codes, scale, bias[:1], dtype=torch.float32)
    wide = torch.zeros(1, MAX_K + 1)
    with pytest.raises(ValueError, match="could overflow int32"):
        int8_linear(quantize_activations(wide), *quantize_weight(wide), None, dtype=torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 64, 32), (17, 128, 8), (1000, 512, 264)], ids=str)
def test_cuda_agrees_with_cpu(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, weight, bias = random_operands(shape, dtype)
    codes, scale = quantize_weight(weight)
    on_cpu = quantize_activations(x)
    on_cuda = quantize_activations(x.cuda())
    assert on_cuda.outlier_columns.tolist() == on_cpu.outlier_columns.tolist()
    torch.testing.assert_close(on_cuda.scale_T.cpu(), on_cpu.scale_T, rtol=2 * FLOAT32_EPS, atol=0)
    found = int8_linear(on_cuda, codes.cuda(), scale.cuda(), bias.cuda(), dtype=dtype)
    expected = int8_linear(on_cpu, codes, scale, bias, dtype=torch.float32)
    # One step of a code may differ where a quotient is a tie but for the last bit of the scale.
    step = float((on_cpu.scale_T.max() if len(x) else torch.ones(())) * scale.max() * 127)
    torch.testing.assert_close(found.cpu().float(), expected, rtol=torch.finfo(dtype).eps, atol=step)
    assert has_int8_product(shape[2], shape[1], on_cuda.codes_TK.device) == (
        shape[1] % 8 == 0 and shape[2] % 8 == 0
    )
