"""What is calibrated on a CPU that is fast in float32 alone, and how rates are kept meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from strata.engine.machine import product_rates
from strata.engine.machine.profile import ComputeRates, load_profile
from strata.engine.machine.rates import LayerRates
from strata.scripts.bench.calibrate import calibrate, plan_error


def test_nothing_is_calibrated_that_float32_is_faster_than(monkeypatch):
    rates = {"float32": 1.4e11, "bfloat16": 7e9, "int8": 6e9}
    monkeypatch.setattr(
        product_rates, "_product_rates", lambda *where: product_rates.ProductRates(flop_per_s=rates)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert calibrate.ways_of_computing() == {"float32": (torch.float32, "dense")}
    profile = load_profile("cpu")
    known = {"float32": profile.compute["float32"]}
    cases = plan_error.cases_of(replace(profile, compute=known))
    assert {case.dtype for case in cases} == {"float32"}
    assert len(cases) == len([case for case in plan_error.CASES if case.dtype != "int8"])


def test_rates_without_a_limit_survive_json():
    rates = ComputeRates(
        gemm_flop_per_s=1e11, layer=LayerRates(linear_flop_per_s=1e11, attention_flop_per_s=5e10)
    )
    kept = json.loads(json.dumps(calibrate.dump_compute(rates), allow_nan=False))
    assert calibrate.load_compute(kept) == rates
