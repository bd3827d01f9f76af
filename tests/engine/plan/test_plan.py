"""The planner: plans that fit, least figures that suffice, what the user fixes, and bytes by hand.

Costs are those of a tiny checkpoint with other sizes put in: the planner reads nothing but numbers.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from strata.engine.machine.devices import GIB
from strata.engine.machine.machine import Budgets
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.plan.planner import spread_layers
from strata.engine.types import InputError

from .small_plans import AMPLE, MIB, RATES, costs_of, make_plan, named_gib, work_of

JOBS = {
    "num_layers": st.integers(1, 12),
    "layer_mib": st.integers(1, 400),
    "hidden_size": st.sampled_from([64, 512, 4096]),
    "num_tokens": st.sampled_from([1000, 5000, 400_000]),
    "devices": st.sampled_from([("cpu",), ("cpu", "cpu"), ("cuda:0",), ("cuda:0", "cuda:1")]),
}
MEBIBYTES = st.integers(1, 20_000)


@given(device_mib=MEBIBYTES, host_mib=MEBIBYTES, **JOBS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_plan_fits_or_the_flag_and_the_least_are_named(
    tiny_costs, num_layers, layer_mib, hidden_size, num_tokens, devices, device_mib, host_mib
):
    costs = costs_of(tiny_costs, num_layers, layer_mib, hidden_size)
    work = work_of(costs, num_tokens)
    budgets = Budgets(device_bytes=device_mib * MIB, host_bytes=host_mib * MIB)
    message, plan = "", None
    try:
        plan = make_plan(costs, work, budgets, devices)
    except InputError as error:
        message = str(error)
    if plan is None:
        assert re.match(r"--(host-)?memory-gib: .* expected at least \d+\.\d+ GiB$", message)
        return
    assert plan.memory_bytes <= budgets.device_bytes
    assert plan.host_bytes <= budgets.host_bytes
    assert set(plan.resident_layers) <= set(range(num_layers))
    assert plan.bytes_read >= num_layers * layer_mib * MIB


@given(**JOBS)
@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
def test_the_least_that_is_named_is_enough(
    tiny_costs, num_layers, layer_mib, hidden_size, num_tokens, devices
):
    costs = costs_of(tiny_costs, num_layers, layer_mib, hidden_size)
    work = work_of(costs, num_tokens)
    with pytest.raises(InputError) as raised:
        make_plan(costs, work, replace(AMPLE, device_bytes=1), devices)
    assert str(raised.value).startswith("--memory-gib: ")
    budgets = replace(AMPLE, device_bytes=int(named_gib(raised.value) * GIB))
    plan = make_plan(costs, work, budgets, devices)
    assert plan.memory_bytes <= budgets.device_bytes


@pytest.mark.parametrize("devices", [("cpu",), ("cuda:0",)], ids=str)
def test_too_little_host_memory_names_its_own_flag_and_what_is_enough(devices, tiny_costs):
    costs = costs_of(tiny_costs, 8, 100, 4096)
    for num_tokens in range(10_000, 20_000, 1000):
        work = work_of(costs, num_tokens)
        with pytest.raises(InputError, match=r"^--host-memory-gib: ") as raised:
            make_plan(costs, work, replace(AMPLE, host_bytes=1), devices)
        budgets = replace(AMPLE, host_bytes=int(named_gib(raised.value) * GIB))
        assert make_plan(costs, work, budgets, devices).host_bytes <= budgets.host_bytes


@given(less_mib=MEBIBYTES, more_mib=MEBIBYTES, store=st.sampled_from(["ram", "disk"]), **JOBS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_more_memory_never_means_fewer_resident_layers(
    tiny_costs, num_layers, layer_mib, hidden_size, num_tokens, devices, store, less_mib, more_mib
):
    # With the rest fixed: free to choose, more memory may go to hidden states that waited on disk before.
    costs = costs_of(tiny_costs, num_layers, layer_mib, hidden_size)
    work = work_of(costs, num_tokens)
    fixed = {"num_groups": 2, "hidden_store": store, "micro_batch_tokens": 64}
    counts = []
    for mib in sorted((less_mib, more_mib)):
        try:
            plan = make_plan(costs, work, replace(AMPLE, device_bytes=mib * MIB), devices, **fixed)
        except InputError:
            counts.append(-1)
        else:
            counts.append(len(plan.resident_layers))
    assert counts == sorted(counts)


def test_ample_memory_holds_everything_in_one_group(tiny_costs):
    costs = costs_of(tiny_costs, 8, 100, 512)
    plan = make_plan(costs, work_of(costs, 5000), AMPLE)
    assert plan.resident_layers == tuple(range(8))
    assert (plan.num_groups, plan.hidden_store) == (1, "ram")


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu"), ("cuda:0",)], ids=str)
def test_what_the_user_fixes_is_kept(devices, tiny_costs):
    costs = costs_of(tiny_costs, 8, 100, 512)
    work = work_of(costs, 5000)
    choices = {"micro_batch_tokens": 333, "num_groups": 3, "resident_layers": 5, "hidden_store": "disk"}
    for name, choice in choices.items():
        plan = make_plan(costs, work, AMPLE, devices, **{name: choice})
        kept = len(plan.resident_layers) if name == "resident_layers" else getattr(plan, name)
        assert kept == choice
    plan = make_plan(costs, work, AMPLE, devices, **choices)
    assert (plan.micro_batch_tokens, plan.num_groups, plan.hidden_store) == (333, 3, "disk")
    assert len(plan.resident_layers) == 5
    assert len(make_plan(costs, work, AMPLE, devices, resident_layers=99).resident_layers) == 8


def test_what_the_user_fixes_may_not_fit(tiny_costs):
    costs = costs_of(tiny_costs, 8, 100, 512)
    budgets = replace(AMPLE, device_bytes=500 * MIB)
    with pytest.raises(InputError, match=r"^--memory-gib: "):
        make_plan(costs, work_of(costs, 5000), budgets, resident_layers=8)


@pytest.mark.parametrize(
    ("name", "setting"), [("micro_batch_tokens", 0), ("num_groups", 0), ("resident_layers", -1)]
)
def test_what_makes_no_sense_is_refused(name, setting):
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')}: {setting} is too small"):
        PlanOverrides(**{name: setting}).check()


@pytest.mark.parametrize("num_layers", [1, 2, 7, 80])
def test_resident_layers_are_spread(num_layers):
    for count in range(num_layers + 1):
        layers = spread_layers(num_layers, count)
        assert len(set(layers)) == count
        assert list(layers) == sorted(layers)
        assert set(layers) <= set(range(num_layers))
        if count:
            gaps = np.diff([-1, *layers, num_layers])
            assert gaps.max() <= 2 * -(-num_layers // count)


def test_streamed_layers_are_priced_once_a_group_and_resident_ones_once(tiny_costs):
    costs = costs_of(tiny_costs, 8, 100, 512)
    work = work_of(costs, 5000)

    def bytes_read(num_groups: int, resident_layers: int) -> int:
        return make_plan(
            costs, work, AMPLE, num_groups=num_groups, resident_layers=resident_layers
        ).bytes_read

    assert bytes_read(1, 0) == bytes_read(1, 8)
    assert bytes_read(3, 0) - bytes_read(3, 8) == 2 * 8 * 100 * MIB
    assert bytes_read(3, 5) - bytes_read(3, 8) == 2 * 3 * 100 * MIB


@pytest.mark.parametrize(
    ("devices", "flop_per_s", "tokens"),
    [
        (("cpu",), 4.3e11, 512),
        (("cpu",), 7e11, 2048),
        (("cpu",), 2e12, 2048),
        (("cpu", "cpu"), 2e11, 512),
        (("cpu", "cpu"), 3.5e11, 2048),
        (("cuda:0",), 2e12, 8192),
    ],
    ids=str,
)
def test_a_micro_batch_grows_with_the_rate_of_products(tiny_costs, devices, flop_per_s, tokens):
    costs = costs_of(tiny_costs, 4, 10, 512)
    rates = replace(RATES, gemm_flop_per_s=flop_per_s)
    assert make_plan(costs, work_of(costs, 400_000), AMPLE, devices, rates=rates).micro_batch_tokens == tokens


def test_a_large_micro_batch_takes_no_memory_from_layers_that_would_be_read_again(tiny_costs):
    """What leaves out a resident layer is read again in every group."""
    costs = costs_of(tiny_costs, 6, 100, 512)
    work = work_of(costs, 100_000)
    rates = replace(RATES, gemm_flop_per_s=2e12, disk_bytes_per_s=1e8)
    ample = make_plan(costs, work, rates=rates, num_groups=4)
    small = make_plan(costs, work, rates=rates, num_groups=4, micro_batch_tokens=512)
    assert ample.memory_bytes > small.memory_bytes
    budgets = Budgets(device_bytes=small.memory_bytes, host_bytes=1 << 50)
    found = make_plan(costs, work, budgets, rates=rates, num_groups=4)
    assert (found.micro_batch_tokens, len(found.resident_layers)) == (512, 6)
