"""The rate that devices keep up is neither their first one nor the fastest's; assumed rates are told."""

from itertools import count

import pytest
import torch

from strata.engine.machine import sustained
from strata.engine.machine.measure import GemmProduct
from strata.engine.machine.profile import load_profile
from strata.engine.machine.provenance import assumption_of, provenance_of
from strata.scripts.cli import main

CPU = torch.device("cpu")


def test_a_device_that_slows_down_counts_as_it_goes_on(monkeypatch):
    """A clock of a second a product; the first 4 of 10 s are fast, the second device is slower. By hand."""
    ticks = count(1)
    monkeypatch.setattr(sustained, "perf_counter", lambda: next(ticks) / 4)
    rates = iter([40e12] * 4 + [20e12] * 60)
    monkeypatch.setattr(GemmProduct, "best_flop_per_s", lambda self, seconds: next(rates))
    assert sustained.sustained_gemm_rate([CPU], torch.float32, 16, seconds=10) == 20e12


def test_the_slowest_device_counts(monkeypatch):
    slow, fast = 1e9, 2e9
    monkeypatch.setattr(
        GemmProduct,
        "best_flop_per_s",
        lambda product, seconds: slow if product.hidden.dtype == torch.float64 else fast,
    )
    made = iter([torch.float64, torch.float32])
    original = GemmProduct.of_width
    monkeypatch.setattr(
        GemmProduct,
        "of_width",
        lambda device, dtype, width, outputs: original(device, next(made), width, outputs),
    )
    assert sustained.sustained_gemm_rate([CPU, CPU], torch.float32, 16, seconds=0.01) == slow


def test_a_rate_is_measured_at_least_once():
    assert sustained.sustained_gemm_rate([CPU], torch.float32, 16, seconds=0.0) > 0


def test_what_nobody_has_measured_is_assumed():
    kaggle = load_profile("kaggle-2xt4")
    assert provenance_of(kaggle, "int8") == "assumed"
    assert provenance_of(kaggle, "float16") == "reported"
    assert provenance_of(load_profile("cpu"), "bfloat16") == "measured"
    assert "47 T/s in int8 are assumed" in str(assumption_of(kaggle, "int8"))
    assert assumption_of(kaggle, "float16") is None


@pytest.mark.parametrize(("dtype", "is_told"), [("int8", True), ("float16", False)])
def test_a_plan_gives_no_advice_that_rests_on_an_assumption(dtype, is_told, capsys):
    asked = ["plan", "--profile", "kaggle-2xt4", "--shape", "tinyllama-1.1b", "--questions", "100"]
    assert main([*asked, "--dtype", dtype]) == 0
    told = capsys.readouterr().out
    assert ("no advice to compute so before it is measured" in told) == is_told
