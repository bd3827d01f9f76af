"""The bench of predicted against measured time: its arithmetic, and configurations that run."""

from __future__ import annotations

import pytest

from strata.engine.machine.profile import load_profile
from strata.engine.plan.shapes import TINY
from strata.scripts.bench.calibrate import plan_error


def test_plan_error_has_enough_configurations_of_different_names():
    names = [case.name for case in plan_error.CASES]
    assert len(names) == len(set(names)) >= 8


def test_errors_are_shares_of_what_was_measured():
    def result(predicted_s: float, measured_s: float) -> plan_error.CaseResult:
        return plan_error.CaseResult(
            name="a",
            predicted_s=predicted_s,
            measured_s=measured_s,
            bottleneck="disk",
            stall_s=0.0,
            gemm_share=1.0,
        )

    results = [result(11.0, 10.0), result(8.0, 10.0), result(10.5, 10.0)]
    summary = plan_error.summarize(results, plan_error.PlanErrorConfig(), load_profile("cpu-zen4"))
    assert summary["plan_error_median"] == pytest.approx(0.1)
    assert summary["plan_error_max"] == pytest.approx(0.2)
    # Two cards of 20 TFLOP/s and 137 GFLOP a token: at most 700 questions of 1,500 tokens an hour.
    assert 580 < summary["forecast_kaggle_2xt4_70b_q_per_h"] < 700


CASES_TO_RUN = [
    {"name": "resident", "resident": True},
    {"name": "throttled", "bytes_per_s": 5e6, "num_groups": 2},
    {"name": "disk", "hidden_store": "disk", "devices": "cpu,cpu"},
    {"name": "int8", "dtype": "int8", "storage": "int8"},
]


@pytest.mark.parametrize("settings", CASES_TO_RUN, ids=lambda settings: settings["name"])
def test_a_configuration_is_planned_as_asked_and_run(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_error, "TINYLLAMA_1B", TINY)
    case = plan_error.SweepCase(num_questions=2, prefix_tokens=30, **settings)
    config = plan_error.PlanErrorConfig(folder=tmp_path, num_layers=3)
    checkpoint = plan_error.make_checkpoint(case, config)
    profile = load_profile("cpu-zen4")
    plan = plan_error.plan_case(case, checkpoint, profile, tmp_path).plan
    assert plan.num_groups == case.num_groups
    assert len(plan.resident_layers) == (3 if case.resident else 0)
    assert plan.hidden_store == case.hidden_store
    assert (plan.linear, plan.rates_from) == ("int8" if case.dtype == "int8" else "dense", "profile cpu-zen4")
    found = plan_error.run_case(case, checkpoint, profile, config)
    assert found.measured_s > 0
    assert found.predicted_s > 0
    assert found.gemm_share > 0
