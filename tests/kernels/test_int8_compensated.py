"""Rounding that makes up for its errors: against plain rounding, on inputs whose columns go together."""

from __future__ import annotations

import pytest
import torch

from strata.kernels.int8_linear import compensated
from strata.kernels.int8_linear.compensated import quantize_weight_compensated
from strata.kernels.int8_linear.quantize import quantize_weight


def operands(num_inputs: int, *, together: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight [48, K], and two samples of inputs [2000, K] of one distribution."""
    generator = torch.Generator().manual_seed(num_inputs)
    weight = torch.randn(48, num_inputs, generator=generator)
    mix = torch.randn(max(1, num_inputs // 4), num_inputs, generator=generator) if together else None
    samples = []
    for _ in range(2):
        x = torch.randn(2000, num_inputs, generator=generator) * 0.1
        if mix is not None:
            x += torch.randn(2000, len(mix), generator=generator) @ mix
        x[:, 0] *= 20
        samples.append(x)
    return weight, *samples


def moments_of(x: torch.Tensor, block: int) -> torch.Tensor:
    num_blocks = -(-x.shape[1] // block)
    padded = torch.nn.functional.pad(x, (0, num_blocks * block - x.shape[1]))
    return torch.stack([part.T @ part for part in padded.split(block, dim=1)])


def error(x: torch.Tensor, weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> float:
    return float((x @ (codes * scale[:, None] - weight).T).square().mean().sqrt())


@pytest.mark.parametrize(("num_inputs", "block", "share"), [(96, 96, 0.6), (150, 150, 0.6), (150, 64, 0.8)])
def test_products_with_other_inputs_change_less(num_inputs, block, share):
    weight, seen, unseen = operands(num_inputs)
    plain = error(unseen, weight, *quantize_weight(weight))
    found = error(unseen, weight, *quantize_weight_compensated(weight, moments_of(seen, block)))
    assert found < share * plain


def test_codes_and_scales_are_those_of_int8():
    weight, seen, _ = operands(150)
    codes, scale = quantize_weight_compensated(weight.bfloat16(), moments_of(seen, 64))
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= 127
    assert torch.equal(scale, quantize_weight(weight.bfloat16())[1])


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_steps_do_not_show(step, monkeypatch):
    weight, seen, _ = operands(96)
    expected, _ = quantize_weight_compensated(weight, moments_of(seen, 96))
    monkeypatch.setattr(compensated, "STEP_COLUMNS", step)
    found, _ = quantize_weight_compensated(weight, moments_of(seen, 96))
    # Sums in another order round a value at the middle of two codes the other way, and then its successors.
    assert (found != expected).float().mean() < 0.02


def test_inputs_that_do_not_go_together_leave_plain_rounding():
    weight, _, _ = operands(33, together=False)
    codes, _ = quantize_weight_compensated(weight, torch.eye(33)[None])
    assert torch.equal(codes, quantize_weight(weight)[0])


def test_inputs_that_were_never_seen_leave_plain_rounding():
    weight, _, _ = operands(33)
    codes, scale = quantize_weight_compensated(weight, torch.zeros(1, 33, 33))
    assert torch.equal(codes, quantize_weight(weight)[0])
    assert scale.isfinite().all()


def test_a_channel_of_zeros_stays_zero():
    weight, seen, _ = operands(96)
    weight[5] = 0
    codes, scale = quantize_weight_compensated(weight, moments_of(seen, 96))
    assert not codes[5].any()
    assert scale[5] == 1


def test_moments_of_another_width_are_refused():
    weight, seen, _ = operands(96)
    with pytest.raises(ValueError, match=r"moments have shape \[2, 64, 64\]"):
        quantize_weight_compensated(weight[:, :60], moments_of(seen, 64))
