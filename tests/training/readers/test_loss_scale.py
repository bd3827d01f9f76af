"""Gradients in float16: those of float32 up to rounding, where unscaled ones would be 0 or overflow.

Independent check: the same reader in float32.
"""

from __future__ import annotations

import pytest
import torch

from strata.training import loss_scale
from strata.training.loss_scale import FIRST_SCALE, accumulate_scaled
from strata.training.readers import resident_reader, streamed_reader
from strata.training.readers.resident_reader import open_resident_reader
from strata.training.readers.streamed_reader import open_streamed_reader

from .test_gradients import close, gradients, make_examples, randomize, settings

SMALL = 1e5
"""Losses so much smaller have gradients that float16 cannot hold."""


def train(model, questions, out, dtype: str, *, streamed: bool) -> dict[str, torch.Tensor]:
    config = settings(model, out, streamed=streamed, dtype=dtype, micro_batch_tokens=100)
    reader = open_streamed_reader(config) if streamed else open_resident_reader(config)
    randomize(reader)
    reader.accumulate_gradients(make_examples(reader, questions, "binary"), seed=0)
    found = {name: gradient.float().clone() for name, gradient in gradients(reader).items()}
    close(reader)
    return found


def error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over that of the gradient, all parameters together."""
    difference = torch.cat([(found[name] - exact[name]).flatten() for name in exact])
    whole = torch.cat([gradient.flatten() for gradient in exact.values()])
    return float(difference.norm() / whole.norm())


@pytest.mark.parametrize("streamed", [False, True])
def test_small_gradients_do_not_vanish(streamed, checkpoint, questions, tmp_path, monkeypatch):
    for module in (resident_reader, streamed_reader):
        monkeypatch.setattr(module, "count_units", lambda task, batch: SMALL * len(batch))
    run = [checkpoint("llama-gqa"), questions, tmp_path]
    exact = train(*run, "float32", streamed=streamed)
    assert error(train(*run, "float16", streamed=streamed), exact) < 0.05
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 1.0)
    assert error(train(*run, "float16", streamed=streamed), exact) > 0.05


@pytest.mark.parametrize("streamed", [False, True])
def test_a_step_that_overflows_is_repeated_with_a_smaller_scale(
    streamed, checkpoint, questions, tmp_path, monkeypatch
):
    run = [checkpoint("llama-gqa"), questions, tmp_path]
    exact = train(*run, "float32", streamed=streamed)
    are_finite, verdicts = loss_scale._are_finite, []
    monkeypatch.setattr(
        loss_scale, "_are_finite", lambda given: verdicts.append(are_finite(given)) or verdicts[-1]
    )
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 2.0**24)
    assert error(train(*run, "float16", streamed=streamed), exact) < 0.05
    assert [verdicts[0], verdicts[-1]] == [False, True]


def test_gradients_are_added_to_those_that_are_there():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    other = torch.nn.Parameter(torch.zeros(1))
    scales = []

    def attempt(scale: float) -> float:
        scales.append(scale)
        parameter.grad = torch.full((2,), float("inf") if len(scales) == 1 else 3 * scale)
        return 0.5

    assert accumulate_scaled([parameter, other], attempt) == 0.5
    assert scales == [FIRST_SCALE, FIRST_SCALE / 16]
    assert parameter.grad.tolist() == [4.0, 5.0]
    assert other.grad is None


@pytest.mark.parametrize("loss", [float("nan"), 1.0])
def test_what_no_scale_helps_is_left_as_it_is(loss):
    """The trainer names the gradient or the loss that is not finite."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    attempts = []

    def attempt(scale: float) -> float:
        attempts.append(scale)
        parameter.grad = torch.tensor([float("nan")])
        return loss

    accumulate_scaled([parameter], attempt)
    assert attempts[-1] == (1.0 if loss == 1.0 else FIRST_SCALE)
    assert parameter.grad.isnan().all()
