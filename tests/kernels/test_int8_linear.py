"""The W8A8 linear against its float64 definition: odd shapes, poisoned memory, outliers, non-finite values.

Tolerance of the linear: the integer product is exact, so what remains is float32 rounding of the epilogue,
relative to the sum of the absolute values of its terms, and one rounding to the dtype asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.kernels.int8_linear import linear, quantize
from strata.kernels.int8_linear.linear import MAX_K, has_int8_product, int8_linear
from strata.kernels.int8_linear.quantize import Int8Activations, quantize_activations, quantize_weight
from strata.kernels.int8_linear.reference import int8_linear_reference, reference_outlier_columns

FLOAT32_EPS = 2.0**-23
INFINITY = float("inf")
SHAPES = ((1, 16, 8), (3, 33, 5), (17, 40, 24), (129, 100, 61), (16, 1, 1), (2, 257, 1), (0, 16, 8))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin return NaN, or the largest integer: what is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def random_operands(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x [T, K] with some outlier columns, weight [N, K], bias [N]; a zero row and column where they fit."""
    num_tokens, num_inputs, num_outputs = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x, weight, bias = (
        torch.randn(size, generator=generator)
        for size in ((num_tokens, num_inputs), (num_outputs, num_inputs), (num_outputs,))
    )
    x[:, num_inputs // 2 : num_inputs // 2 + num_inputs // 20] *= 20
    if num_inputs > 1:
        x[:, 1] = weight[:, 0] = 0
        x[2:3] = weight[3:4] = 0
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def assert_matches_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    threshold: float = 6.0,
) -> None:
    codes, scale = quantize_weight(weight)
    found = int8_linear(quantize_activations(x, threshold), codes, scale, bias, dtype=dtype)
    expected = int8_linear_reference(x, codes, scale, bias, threshold)
    no_bias = None if bias is None else bias.abs()
    magnitude = int8_linear_reference(x.abs(), codes.abs(), scale, no_bias, threshold)
    # Three scalings and two additions, and U + 1 roundings at most in the outlier product.
    num_roundings = 6 + x.shape[1] // quantize.MAX_OUTLIER_SHARE
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


def test_reference_meets_outliers_in_the_odd_shapes() -> None:
    x, _, _ = random_operands((17, 40, 24), torch.float32)
    assert reference_outlier_columns(x, 6.0).nonzero().flatten().tolist() == [20, 21]
    assert quantize_activations(x).outlier_columns.tolist() == [20, 21]


@pytest.mark.parametrize(("block_tokens", "block_elements"), [(1024, 1 << 21), (50, 50 * 16), (7, 7 * 24)])
def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch, block_tokens: int, block_elements: int) -> None:
    x, weight, bias = random_operands((129, 100, 61), torch.bfloat16)
    codes, scale = quantize_weight(weight)
    activations = quantize_activations(x)
    whole = int8_linear(activations, codes, scale, bias, dtype=torch.float32)
    monkeypatch.setitem(linear.BLOCK_TOKENS, "cpu", block_tokens)
    monkeypatch.setitem(linear.BLOCK_ELEMENTS, "cpu", block_elements)
    blocked = int8_linear(activations, codes, scale, bias, dtype=torch.float32)
    # Only the float32 sum over the few outlier columns may be taken in another order.
    torch.testing.assert_close(
        blocked, whole, rtol=4 * FLOAT32_EPS, atol=4 * FLOAT32_EPS * float(whole.abs().max())
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
    monkeypatch.setattr(linear, "has_int8_product", lambda *arguments: False)
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


def test_a_column_is_an_outlier_only_above_the_threshold() -> None:
    x = torch.zeros(3, 64)
    x[0, 9], x[1, 20], x[2, 33] = 6.0, -6.001, 6.001
    x[2, 5] = 1.0
    activations = quantize_activations(x)
    assert activations.outlier_columns.tolist() == [20, 33]
    assert activations.outliers_TU is not None
    assert torch.equal(activations.outliers_TU, x[:, [20, 33]])
    assert activations.codes_TK[:, [20, 33]].count_nonzero() == 0
    assert activations.scale_T.tolist() == pytest.approx([6 / 127, 1.0, 1 / 127])
    assert activations.codes_TK[0, 9] == activations.codes_TK[2, 5] == 127


def test_of_many_outlier_columns_the_largest_are_kept() -> None:
    x = 10.0 + torch.arange(64.0).expand(2, 64)
    assert quantize_activations(x).outlier_columns.tolist() == [60, 61, 62, 63]
    assert quantize_activations(-x[:, :15]).outlier_columns.tolist() == []


@pytest.mark.parametrize("poison", [INFINITY, -INFINITY, float("nan")])
@pytest.mark.parametrize("threshold", [6.0, INFINITY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_finite_tokens_stay_non_finite(poison: float, threshold: float, dtype: torch.dtype) -> None:
    x, weight, bias = random_operands((17, 40, 24), dtype)
    weight[0] = 0
    x[4, 7] = poison
    codes, scale = quantize_weight(weight)
    found = int8_linear(quantize_activations(x, threshold), codes, scale, bias, dtype=dtype)
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


matrices = st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31), st.integers(-140, 120))


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_weights_are_within_half_a_step(matrix: tuple[int, int, int, int]) -> None:
    num_rows, num_columns, seed, exponent = matrix
    weight = torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(seed)).double()
    weight = (weight * 2.0**exponent).float()
    codes, scale = quantize_weight(weight)
    error = (codes.double() * scale.double()[:, None] - weight.double()).abs()
    # The quotient, at most 127, is rounded to float32 before it is rounded to an integer.
    assert (error <= scale.double()[:, None] * (0.5 + 127 * FLOAT32_EPS)).all()
    assert int(codes.min()) >= -127
    assert scale.isfinite().all()
    assert (scale > 0).all()


def test_ties_go_to_even_and_zeros_have_scale_one() -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, -2.5, -126.5], [0.0] * 5])
    codes, scale = quantize_weight(weight)
    assert codes.tolist() == [[127, 0, 2, -2, -126], [0] * 5]
    assert scale.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("block_elements", [1, 100, 250, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_block_size_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, block_elements: int, dtype: torch.dtype
) -> None:
    _, weight, _ = random_operands((1, 100, 61), dtype)
    expected = [quantize_weight(row[None]) for row in weight]
    monkeypatch.setattr(quantize, "BLOCK_ELEMENTS", block_elements)
    codes, scale = quantize_weight(weight)
    assert torch.equal(codes, torch.cat([row for row, _ in expected]))
    assert torch.equal(scale, torch.cat([row for _, row in expected]))


def test_out_is_overwritten_and_returned() -> None:
    _, weight, _ = random_operands((1, 100, 61), torch.bfloat16)
    expected_codes, expected_scale = quantize_weight(weight)
    out = (torch.full((61, 100), 99, dtype=torch.int8), torch.full((61,), float("nan")))
    codes, scale = quantize_weight(weight, out=out)
    assert codes is out[0]
    assert scale is out[1]
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scale, expected_scale)


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
    with pytest.raises(ValueError, match=r"out\[0\] must be int8 \[5, 33\]"):
        quantize_weight(weight, out=(codes[:4], scale))
    with pytest.raises(ValueError, match="weight_NK must be a float matrix"):
        quantize_weight(codes)
    with pytest.raises(ValueError, match="outlier_threshold must be positive"):
        quantize_activations(x, 0.0)
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
