"""Quantisation of the W8A8 linear: half a step for weights, outlier columns apart for activations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.kernels.int8_linear import quantize
from strata.kernels.int8_linear.quantize import quantize_activations, quantize_weight
from strata.kernels.int8_linear.reference import reference_outlier_columns

from .int8_work import DTYPES, FLOAT32_EPS, INFINITY, poisoned_memory, random_operands

__all__ = ["poisoned_memory"]


def test_reference_meets_outliers_in_the_odd_shapes() -> None:
    x, _, _ = random_operands((17, 40, 24), torch.float32)
    assert reference_outlier_columns(x, 3.0).nonzero().flatten().tolist() == [20, 21]
    assert quantize_activations(x).outlier_columns.tolist() == [20, 21]


def test_a_column_is_an_outlier_only_above_three_median_columns() -> None:
    x = torch.zeros(3, 64)
    x[1], x[2] = 1.0, 1.0
    x[1:, 50:], x[0, 50:] = 0.0, 2.0
    x[1:, 9], x[1:, 20], x[1:, 33] = 0.0, 0.0, 0.0
    x[0, 9], x[1, 20], x[2, 33] = 3.0, -3.001, 3.001
    activations = quantize_activations(x)
    assert activations.outlier_columns.tolist() == [20, 33]
    assert activations.outliers_TU is not None
    assert torch.equal(activations.outliers_TU, x[:, [20, 33]])
    assert activations.codes_TK[:, [20, 33]].count_nonzero() == 0
    assert activations.scale_T.tolist() == pytest.approx([3 / 127, 1 / 127, 1 / 127])
    assert activations.codes_TK[0, 9] == activations.codes_TK[2, 5] == 127


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_what_is_an_outlier_does_not_depend_on_the_scale_of_all(dtype: torch.dtype, scale: float) -> None:
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    x[:, [7, 99]] *= 8
    assert quantize_activations((x * scale).to(dtype)).outlier_columns.tolist() == [7, 99]


def test_columns_of_normal_values_are_no_outliers() -> None:
    x = torch.randn(512, 4096, generator=torch.Generator().manual_seed(0))
    assert quantize_activations(x).outlier_columns.tolist() == []


def test_of_many_outlier_columns_the_largest_are_kept() -> None:
    x = torch.cat([torch.ones(40), 10.0 + torch.arange(24.0)]).expand(2, 64)
    assert quantize_activations(x).outlier_columns.tolist() == [60, 61, 62, 63]
    assert quantize_activations(-x[:, -15:]).outlier_columns.tolist() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_outliers", [0, 1, 3, 64])
def test_as_many_columns_as_told_are_kept_the_largest(num_outliers: int, dtype: torch.dtype) -> None:
    x = torch.randn(33, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[4, 9], x[30, 50] = 80.0, -90.0
    activations = quantize_activations(x, num_outliers=num_outliers)
    expected = reference_outlier_columns(x, 3.0, num_outliers)
    assert expected.sum() == num_outliers
    assert expected[[9, 50]].sum() == min(num_outliers, 2)
    assert activations.outlier_columns.tolist() == expected.nonzero().flatten().tolist()
    rest = quantize_activations(x.masked_fill(expected, 0.0), INFINITY)
    assert torch.equal(activations.codes_TK, rest.codes_TK)
    assert torch.equal(activations.scale_T, rest.scale_T)
    if num_outliers:
        assert activations.outliers_TU is not None
        assert torch.equal(activations.outliers_TU, x[:, expected])


def test_no_tokens_have_no_outliers() -> None:
    for num_outliers in (None, 0, 2):
        activations = quantize_activations(torch.zeros(0, 64), num_outliers=num_outliers)
        assert activations.outlier_columns.tolist() == []
        assert activations.outliers_TU is None


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not hasattr(torch._C, "_cuda_set_sync_debug_mode"),
    reason="needs a CUDA device; of simulated ones, simulated_cuda/checks/budgets.py counts the waits",
)
def test_a_known_number_of_outliers_is_not_waited_for() -> None:
    x = random_operands((1000, 512, 1), torch.float16)[0].cuda()
    expected = quantize_activations(x)
    num_outliers = len(expected.outlier_columns)
    assert num_outliers > 0
    quantize_activations(x, num_outliers=num_outliers)  # kernels are loaded once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = quantize_activations(x, num_outliers=num_outliers)
        with pytest.raises(RuntimeError, match="synchroniz"):
            quantize_activations(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.outlier_columns.tolist() == expected.outlier_columns.tolist()
    assert torch.equal(found.codes_TK, expected.codes_TK)


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
    x, weight, _ = random_operands((3, 33, 5), torch.float32)
    codes, scale = quantize_weight(weight)
    with pytest.raises(ValueError, match=r"out\[0\] must be int8 \[5, 33\]"):
        quantize_weight(weight, out=(codes[:4], scale))
    with pytest.raises(ValueError, match="weight_NK must be a float matrix"):
        quantize_weight(codes)
    with pytest.raises(ValueError, match="outlier_spread must be positive"):
        quantize_activations(x, 0.0)
    for num_outliers in (-1, 34):
        with pytest.raises(ValueError, match=rf"num_outliers must be within 0..33, not {num_outliers}"):
            quantize_activations(x, num_outliers=num_outliers)
