"""The planner: plans that fit, least figures that suffice, bytes that come true, memory that stays inside.

Costs are those of a tiny checkpoint with other sizes put in: the planner reads nothing but numbers.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from strata.engine.machine.devices import GIB
from strata.engine.machine.machine import Budgets
from strata.engine.machine.rates import MachineRates
from strata.engine.model.decoder import build_decoder
from strata.engine.model.weight_routes import route_layers
from strata.engine.plan.costs import ModelCosts, model_costs
from strata.engine.plan.planner import plan_sweep, spread_layers
from strata.engine.plan.shapes import TINY, ModelShape
from strata.engine.plan.sweep_plan import PlanOverrides, SweepPlan
from strata.engine.plan.workload import Workload, measure_workload
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint

from ...families import build_tokenizer
from ...sample_questions import QUESTIONS, write_jsonl

MIB = 1 << 20
RATES = MachineRates(gemm_flop_per_s=1e11, disk_bytes_per_s=1e9, host_to_device_bytes_per_s=1e10)
AMPLE = Budgets(device_bytes=1 << 50, host_bytes=1 << 50)


@pytest.fixture(scope="module")
def tiny_costs(checkpoint) -> ModelCosts:
    return read_tiny_costs(checkpoint)


def read_tiny_costs(checkpoint) -> ModelCosts:
    opened = open_checkpoint(checkpoint("llama-gqa"))
    decoder = build_decoder(opened.config, torch.float32)
    return model_costs(opened.config, route_layers(opened, decoder, torch.float32), torch.float32)


def costs_of(tiny: ModelCosts, num_layers: int, layer_mib: int, hidden_size: int) -> ModelCosts:
    same = (layer_mib * MIB,) * num_layers
    return replace(
        tiny,
        stored_bytes=same,
        buffer_bytes=same,
        weight_bytes=same,
        converted_bytes=(0,) * num_layers,
        decode_weights=({},) * num_layers,
        linear_weights=(layer_mib * MIB // 4,) * num_layers,
        windows=(None,) * num_layers,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_heads=hidden_size // 64,
        num_kv_heads=hidden_size // 64,
        head_dim=64,
    )


def work_of(costs: ModelCosts, num_tokens: int) -> Workload:
    position_ids = np.arange(1000, dtype=np.int32)
    thousand = measure_workload(
        costs,
        token_ids=position_ids % 700,
        position_ids=position_ids,
        scored=np.arange(0, 1000, 50),
        num_members=1,
        norm_bytes=4 * costs.hidden_size,
        head_bytes=8 * costs.hidden_size,
        embedding_row_bytes=4 * costs.hidden_size,
    )
    times = num_tokens / 1000
    return replace(
        thousand,
        num_tokens=num_tokens,
        num_scored=num_tokens // 50,
        gemm_flops=times * thousand.gemm_flops,
        attention_flops=times * thousand.attention_flops,
    )


def make_plan(costs, work, budgets, devices=("cpu",), **overrides) -> SweepPlan:
    return plan_sweep(
        costs,
        work,
        devices=devices,
        dtype="float32",
        budgets=budgets,
        rates=RATES,
        overrides=PlanOverrides(**overrides),
    )


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


def named_gib(error: InputError) -> float:
    found = re.search(r"expected at least ([\d.]+) GiB", str(error))
    assert found
    return float(found[1])


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
        PlanOverrides(**{name: setting})


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


RUNS = {
    "tied": ("llama-tied", "causal_lm", {"head": "letters"}),
    "experts": ("mixtral", "sharded", {"head": "loglik", "resident_layers": 1, "num_groups": 2}),
    "classifier": ("qwen3", "classifier", {"num_groups": 3, "resident_layers": 0}),
    "contrast": ("llama-gqa", "contrast_classifier", {"devices": "cpu,cpu", "hidden_store": "disk"}),
    "rotated": ("gemma2", "causal_lm", {"head": "letters", "debias": "rotate", "num_groups": 2}),
    "bfloat16": ("phi3", "causal_lm", {"head": "yes-no", "dtype": "bfloat16", "resident_layers": 2}),
    "more groups than there is to do": ("llama-gqa", "causal_lm", {"num_groups": 64, "limit": 1}),
    "two devices, groups": (
        "olmo2",
        "causal_lm",
        {"devices": "cpu,cpu", "num_groups": 2, "resident_layers": 1, "micro_batch_tokens": 19},
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_reads_exactly_the_bytes_of_its_plan(case, checkpoint, score):
    family, kind, flags = RUNS[case]
    record = score(model=checkpoint(family, kind), **flags).record
    assert record["measured"]["bytes_read"] == record["plan"]["bytes_read"] > 0
    assert record["measured"]["tokens_computed"] == record["plan"]["tokens"]


@pytest.mark.parametrize("num_groups", [3, 8, 64])
def test_more_groups_than_there_is_to_do_score_the_same(num_groups, checkpoint, score):
    flags = {"model": checkpoint("llama-gqa"), "head": "yes-no", "limit": 1}
    whole, cut = score(**flags), score(num_groups=num_groups, **flags)
    np.testing.assert_allclose(cut.scores[0].scores, whole.scores[0].scores, rtol=0, atol=1e-5)
    assert cut.record["warnings"]["rows"] == whole.record["warnings"]["rows"]
    (message,) = cut.record["warnings"]["messages"]
    assert message.startswith(f"--num-groups {cut.record['run_info']['config']['num_groups']}:")


def test_the_least_memory_that_a_run_names_is_enough(checkpoint, score):
    flags = {"model": checkpoint("llama-gqa"), "head": "yes-no"}
    with pytest.raises(InputError, match="--memory-gib") as raised:
        score(memory_gib=1e-6, **flags)
    run = score(memory_gib=named_gib(raised.value), **flags)
    assert run.record["plan"]["memory_bytes"] <= run.record["plan"]["budgets"]["device_bytes"]


PEAK_RUNS = {
    "streamed": {"num_groups": 1},
    "two devices": {"num_groups": 1, "devices": "cpu,cpu"},
    "converted": {"num_groups": 1, "dtype": "bfloat16"},
    "on disk": {"num_groups": 1, "hidden_store": "disk", "micro_batch_tokens": 64},
    "groups": {"num_groups": 6, "questions": "long.jsonl"},
}
WIDE = ModelShape(
    name="wide",
    hidden_size=512,
    intermediate_size=1536,
    num_layers=8,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    vocab_size=384,
    max_position=4096,
)
MEASURE_PEAKS = """
import gc, json, sys
from pathlib import Path
import torch
from strata.engine.machine import machine
from strata.engine.machine.rates import MachineRates
from strata.engine.config import ScoreConfig
from strata.engine.run.score import score_questions
from strata.engine.types import InputError

torch.set_num_threads(1)
machine.measure_rates = lambda *arguments: MachineRates(gemm_flop_per_s=1e11, disk_bytes_per_s=1e9)
folder, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
basic = {"questions": folder / "short.jsonl", "head": "yes-no", "devices": "cpu", "dtype": "float32"}
score_questions(ScoreConfig.from_flags(model=folder / "tiny", out=folder / "first", **basic))
for name, flags in runs.items():
    flags = basic | flags | {"model": folder / "wide", "out": folder / name}
    flags["questions"] = folder / flags["questions"]
    try:
        score_questions(ScoreConfig.from_flags(**flags, memory_gib=1e-6))
    except InputError as error:
        least_gib = float(str(error).split()[-2])
    gc.collect()
    score_questions(ScoreConfig.from_flags(**flags, memory_gib=least_gib + 0.01))
"""


@pytest.fixture(scope="module")
def peak_records(tmp_path_factory) -> dict[str, dict]:
    """run.json of runs near the least budget, in a process of their own.

    glibc keeps freed memory of up to 32 MiB a piece unless its mmap threshold is fixed, which would count for
    the next run; the small run first loads what is loaded once.
    """
    folder = tmp_path_factory.mktemp("peaks")
    for name, shape in (("tiny", replace(TINY, vocab_size=384, max_position=4096)), ("wide", WIDE)):
        build_tokenizer().save_pretrained(make_random_checkpoint(shape, folder / name, dtype="float32"))
    for name, times in (("short", 3), ("long", 8)):
        rows = [row | {"context": row["context"] * times} for row in QUESTIONS]
        write_jsonl(folder / f"{name}.jsonl", rows)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
    command = [sys.executable, "-c", MEASURE_PEAKS, str(folder), json.dumps(PEAK_RUNS)]
    subprocess.run(command, env=environment, check=True, timeout=200, capture_output=True)
    return {name: json.loads((folder / name / "run.json").read_text()) for name in PEAK_RUNS}


PEAK_SLACK_BYTES = 24 * MIB
"""What the planner does not count: Python objects, kernels' own buffers, pages that the allocator keeps."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc's allocator settings")
@pytest.mark.parametrize("name", PEAK_RUNS)
def test_peak_memory_stays_inside_the_budget(name, peak_records):
    plan, measured = peak_records[name]["plan"], peak_records[name]["measured"]
    assert len(plan["resident_layers"]) < 8
    assert measured["memory_bytes"] <= plan["budgets"]["device_bytes"] + PEAK_SLACK_BYTES
