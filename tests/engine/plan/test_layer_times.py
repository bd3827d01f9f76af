"""Predicted seconds of a plan: by hand, by part, and what the planner makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strata.engine.machine.devices import GIB
from strata.engine.machine.machine import Budgets
from strata.engine.machine.rates import LayerRates
from strata.engine.plan import planner as plan_module
from strata.engine.plan.planner import predict_plan
from strata.engine.plan.simulation import simulate_sweep
from strata.engine.plan.sweep_plan import SweepPlan

from .small_plans import AMPLE, MIB, RATES, costs_of, make_plan, work_of

CALIBRATED = replace(
    RATES,
    layer=LayerRates(linear_flop_per_s=1e11, attention_flop_per_s=5e10, weights_bytes_per_s=1e10),
    rates_from="calibrated 2026-01-02",
)


def plan_with(rates, costs, work, budgets=AMPLE, devices=("cpu",), **overrides) -> SweepPlan:
    return make_plan(costs, work, budgets, devices, rates=rates, **overrides)


def test_rates_measured_quickly_leave_the_usual_micro_batch(tiny_costs):
    costs = costs_of(tiny_costs, 8, 100, 512)
    assert plan_with(RATES, costs, work_of(costs, 5000)).micro_batch_tokens == 512
    assert plan_with(RATES, costs, work_of(costs, 5000), devices=("cuda:0",)).micro_batch_tokens == 8192


def test_calibrated_rates_choose_a_micro_batch_that_passes_over_the_weights_less_often(tiny_costs):
    costs = costs_of(tiny_costs, 8, 100, 512)
    plan = plan_with(CALIBRATED, costs, work_of(costs, 100_000))
    assert plan.micro_batch_tokens == 1024
    fixed = plan_with(CALIBRATED, costs, work_of(costs, 100_000), micro_batch_tokens=512)
    assert plan.predicted_s < 0.98 * fixed.predicted_s
    # Where passes cost nothing, the usual size stays.
    layer = replace(CALIBRATED.layer, weights_bytes_per_s=1e15)
    free = plan_with(replace(CALIBRATED, layer=layer), costs, work_of(costs, 100_000))
    assert free.micro_batch_tokens == 512


def test_plans_repeat(tiny_costs):
    costs = costs_of(tiny_costs, 12, 80, 512)
    budgets = Budgets(device_bytes=700 * MIB, host_bytes=700 * MIB)
    plans = {plan_with(CALIBRATED, costs, work_of(costs, 400_000), budgets) for _ in range(3)}
    assert len(plans) == 1


def test_the_time_of_a_sweep_by_hand(tiny_costs):
    """Eight streamed layers of 100 MiB: compute hides reading but for the first layer's."""
    costs = costs_of(tiny_costs, 8, 100, 512)
    work = work_of(costs, 5000)
    plan = plan_with(RATES, costs, work, resident_layers=0, num_groups=1)
    compute_s = work.gemm_flops / (0.95 * 1e11) + work.attention_flops / (0.4 * 1e11)
    assert plan.compute_s == pytest.approx(compute_s)
    embedding_s = work.distinct_tokens * work.embedding_row_bytes / 1e9
    store_s = 8 * 5000 * 512 * 4 / RATES.host_bytes_per_s
    assert plan.store_s == pytest.approx(store_s)
    expected = embedding_s + 100 * MIB / 1e9 + compute_s + store_s + work.head_bytes / 1e9
    assert plan.predicted_s == pytest.approx(expected)


def test_slower_parts_make_slower_plans_and_name_the_bottleneck(tiny_costs):
    costs = costs_of(tiny_costs, 8, 100, 512)
    work = work_of(costs, 5000)
    rates = replace(RATES, host_to_device_bytes_per_s=None)
    assert plan_with(rates, costs, work).bottleneck == "compute"
    slow_disk = plan_with(replace(rates, disk_bytes_per_s=1e6), costs, work, num_groups=1)
    assert slow_disk.bottleneck == "disk"
    assert slow_disk.predicted_s >= slow_disk.read_s > slow_disk.compute_s
    packed = replace(costs, decode_weights=({"nf4": 25 * MIB},) * 8)
    slow_decode = plan_with(replace(rates, decode_weights_per_s={"nf4": 1e4}), packed, work, num_groups=1)
    assert slow_decode.bottleneck == "decoding"
    assert slow_decode.decode_s == pytest.approx(8 * 25 * MIB / 1e4)


def test_a_plan_priced_anew_is_the_same(tiny_costs):
    costs = costs_of(tiny_costs, 8, 100, 512)
    work = work_of(costs, 5000)
    plan = plan_with(CALIBRATED, costs, work, num_groups=3, resident_layers=2)
    assert predict_plan(plan, costs, work, CALIBRATED) == plan
    assert predict_plan(replace(plan, num_groups=2), costs, work, CALIBRATED).bytes_read < plan.bytes_read


def test_eighty_layers_and_all_groups_are_planned_without_playing_every_sweep(tiny_costs, monkeypatch):
    """Counts simulations, not seconds: candidates that cannot win are not played."""
    played = []

    def counting(times, **settings):
        played.append(times)
        return simulate_sweep(times, **settings)

    monkeypatch.setattr(plan_module, "simulate_sweep", counting)
    costs = costs_of(tiny_costs, 80, 400, 4096)
    plan_with(CALIBRATED, costs, work_of(costs, 400_000), Budgets(device_bytes=6 * GIB, host_bytes=6 * GIB))
    # Four micro-batches, two stores and seven group counts make 56.
    assert 0 < len(played) < 28


def test_a_run_tells_where_its_rates_come_from_and_predicts_what_its_lanes_make(checkpoint, score):
    record = score(model=checkpoint("llama-gqa"), head="yes-no", num_groups=64, limit=1).record
    assert record["plan"]["rates_from"] == record["plan"]["rates"]["rates_from"] == "measured quickly"
    assert record["plan"]["num_groups"] < 64
    assert record["plan"]["predicted_s"] >= record["plan"]["compute_s"] > 0
