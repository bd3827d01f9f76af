"""Calibration: rates are recovered from the times they make, and a small calibration serves a plan."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from strata.engine.machine.profile import calibrated_path, describe_machine, load_profile, read_profile
from strata.engine.machine.rates import LayerRates, MachineRates
from strata.engine.model.decoder import build_decoder
from strata.engine.model.weight_routes import route_layers
from strata.engine.plan.costs import ModelCosts, model_costs
from strata.engine.plan.shapes import TINY, to_llama_config
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.plan.times import compute_seconds
from strata.engine.plan.workload import Workload
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.formats.gguf import KINDS
from strata.scripts.bench.calibrate import calibrate, decode_runs, layer_runs, storage_runs
from strata.scripts.bench.calibrate.decode_runs import decode_steps
from strata.scripts.bench.calibrate.layer_fit import (
    LayerSample,
    LayerSizes,
    PartRates,
    fit_attention,
    fit_layer,
    predict_seconds,
    solve_nonnegative,
)
from strata.scripts.bench.calibrate.layer_runs import (
    LayerCase,
    TimedLayer,
    TimedRun,
    median_in_turns,
    prefix_attention,
)
from strata.scripts.bench.configs import CalibrateConfig
from strata.scripts.bench.timing import least_seconds
from strata.scripts.bench.workloads.flops import gemm_flops_per_token
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint

SIZES = LayerSizes(width=7680, num_heads=32, head_dim=64, weight_bytes=88_000_000)
RATES = LayerRates(
    linear_flop_per_s=4e11,
    attention_flop_per_s=3.5e11,
    softmax_scores_per_s=2e9,
    elements_per_s=8e8,
    weights_bytes_per_s=1e10,
    call_s=6e-4,
    masked_keys=64.0,
)
RUNS = [
    TimedRun(run=lambda: None, gemm_flops=8.8e7 * tokens, tokens=tokens, calls=calls, scores=scores)
    for tokens, calls, scores in ((1400, 3, 3e7), (1200, 3, 5e6), (1400, 11, 3e7), (600, 5, 2e6))
]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's calibration."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


ALONE = PartRates(
    linear_flop_per_s=4e11,
    attention_flop_per_s=3.5e11,
    softmax_scores_per_s=2e9,
    masked_keys=64.0,
    call_s=6e-4,
)


def test_a_fit_recovers_the_rates_that_made_the_times():
    samples = [LayerSample(seconds=predict_seconds(run, RATES, SIZES), run=run) for run in RUNS]
    found = fit_layer(samples, SIZES, ALONE)
    for name in ("elements_per_s", "weights_bytes_per_s", "softmax_scores_per_s"):
        assert getattr(found, name) == pytest.approx(getattr(RATES, name), rel=1e-6)


def test_attention_slower_than_alone_goes_to_its_softmax():
    slower = replace(RATES, softmax_scores_per_s=1e9)
    samples = [LayerSample(seconds=predict_seconds(run, slower, SIZES), run=run) for run in RUNS]
    assert fit_layer(samples, SIZES, ALONE).softmax_scores_per_s == pytest.approx(1e9, rel=1e-6)


def test_layers_faster_than_their_parts_leave_nothing_negative():
    samples = [LayerSample(seconds=predict_seconds(run, RATES, SIZES), run=run) for run in RUNS]
    found = fit_layer(samples, SIZES, replace(ALONE, linear_flop_per_s=1e11))
    assert (found.elements_per_s, found.weights_bytes_per_s) == (math.inf, math.inf)


def test_attention_is_split_into_products_and_the_rest():
    scores = 1e7
    seconds = tuple(scores * (4 * head_dim / 3e11 + 1 / 2e9) for head_dim in (64, 128))
    assert fit_attention(seconds, scores, (64, 128)) == pytest.approx((3e11, 2e9))
    # Larger heads cannot be faster; then all of the time is given to the products.
    assert fit_attention((0.2, 0.1), scores, (64, 128)) == (4 * 128 * scores / 0.1, math.inf)


def test_least_squares_without_negatives_beats_a_grid():
    generator = np.random.default_rng(0)
    for _ in range(20):
        matrix, target = generator.normal(size=(5, 3)), generator.normal(size=5)
        found = solve_nonnegative(matrix, target)
        assert (found >= 0).all()
        error = np.square(matrix @ found - target).sum()
        grid = np.array(list(product(np.linspace(0, 3, 13), repeat=3)))
        assert error <= np.square(grid @ matrix.T - target).sum(axis=1).min() + 1e-12


@pytest.fixture(scope="module")
def tiny_layer() -> TimedLayer:
    return TimedLayer(shape=TINY, dtype=torch.float32, linear="dense", device=torch.device("cpu"))


def test_a_lane_counts_what_it_computes(tiny_layer):
    case = LayerCase(micro_batch_tokens=64, prefix_tokens=100, num_questions=2)
    lane = tiny_layer.lane(case)
    # A question: 100 prefix tokens, 5 options of 40 behind it.
    seen = 100 * 101 // 2 + 5 * (40 * 100 + 40 * 41 // 2)
    assert lane.tokens == 2 * 300
    assert lane.calls == math.ceil(600 / 64)
    assert lane.scores == TINY.num_heads * 2 * seen
    assert lane.gemm_flops == gemm_flops_per_token(TINY) * 600
    assert tiny_layer.matrices(10).gemm_flops == gemm_flops_per_token(TINY) * 10


def test_attention_alone_counts_whole_tiles_on_cpu():
    run = prefix_attention(TINY, 200, torch.float32, torch.device("cpu"))
    assert run.scores == 4 * (128 * 128 + 72 * 200)
    assert run.run().shape == (200, 4, 16)


def test_every_run_is_repeated_in_turns():
    order: list[int] = []
    runs = [TimedRun(run=lambda number=number: order.append(number)) for number in range(3)]
    seconds = median_in_turns(runs, torch.device("cpu"), at_least_s=0.0)
    assert order == [0, 1, 2] * 4
    assert all(0 <= one < 1 for one in seconds)


def test_neither_a_busy_moment_nor_a_lucky_one_counts(monkeypatch):
    """Of four rounds the first is left out, and of the others the middle one counts."""
    told = iter([9.0, 2.0, 1.0, 7.0])

    def watch(device: torch.device) -> AbstractContextManager[SimpleNamespace]:
        return nullcontext(SimpleNamespace(seconds=next(told)))

    monkeypatch.setattr(layer_runs, "Stopwatch", watch)
    run = TimedRun(run=lambda: None)
    assert median_in_turns([run], torch.device("cpu"), at_least_s=0.0) == [2.0]


def test_the_planner_adds_a_layer_up_as_the_fit_does(tiny_layer, tiny_costs):
    """The fit and the planner each write the sum down; both must mean the same."""
    lane = tiny_layer.lane(LayerCase(micro_batch_tokens=64, prefix_tokens=100, num_questions=2))
    sizes = LayerSizes(
        width=TINY.hidden_size + TINY.intermediate_size,
        num_heads=TINY.num_heads,
        head_dim=TINY.head_dim,
        weight_bytes=tiny_costs.weight_bytes[0],
    )
    layers = TINY.num_layers
    work = Workload(
        num_tokens=lane.tokens,
        num_scored=lane.tokens,
        longest_branch_tokens=140,
        distinct_tokens=200,
        num_members=1,
        gemm_flops=layers * lane.gemm_flops,
        attention_flops=layers * 4 * TINY.head_dim * lane.scores,
        norm_bytes=0,
        head_bytes=0,
        embedding_row_bytes=1,
    )
    plan = SweepPlan(
        devices=("cpu",),
        dtype="float32",
        num_groups=1,
        micro_batch_tokens=64,
        resident_layers=(),
        num_slots=2,
        hidden_store="ram",
        tokens=lane.tokens,
        flops=0.0,
        bytes_read=0,
        memory_bytes=0,
        host_bytes=0,
        predicted_s=0.0,
        compute_s=0.0,
        read_s=0.0,
        bottleneck="",
    )
    rates = MachineRates(gemm_flop_per_s=1e12, disk_bytes_per_s=1e9, layer=RATES)
    seconds = compute_seconds(plan, tiny_costs, work, rates)
    assert seconds[0] == pytest.approx(predict_seconds(lane, RATES, sizes), rel=1e-9)


@pytest.fixture
def tiny_costs(tmp_path: Path) -> ModelCosts:
    """Costs of the tiny shape."""
    opened = open_checkpoint(make_random_checkpoint(TINY, tmp_path / "tiny", dtype="float32"))
    decoder = build_decoder(to_llama_config(TINY), torch.float32)
    return model_costs(opened.config, route_layers(opened, decoder, torch.float32), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_decode_step_runs_on_a_small_matrix(dtype, monkeypatch):
    monkeypatch.setattr(decode_runs, "ROWS", 128)
    monkeypatch.setattr(decode_runs, "COLUMNS", 256)
    monkeypatch.setattr(decode_runs, "NUM_WEIGHTS", 128 * 256)
    steps = decode_steps(dtype, torch.device("cpu"))
    assert {"plain", "int8", "nf4", "gptq", "awq", "fp8", "quantize"} <= set(steps)
    assert {kind.format_name for kind in KINDS.values()} <= set(steps)
    for step in steps.values():
        step()


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration of a second or two: everything tiny."""
    monkeypatch.setattr(calibrate, "TINYLLAMA_1B", TINY)
    cases = (LayerCase(micro_batch_tokens=32, prefix_tokens=50, num_questions=1),) * 2
    monkeypatch.setattr(calibrate, "CASES", {"cpu": cases})
    monkeypatch.setattr(calibrate, "median_in_turns", partial(median_in_turns, at_least_s=0.0))
    monkeypatch.setattr(calibrate, "ATTENTION_KEYS", {"cpu": 128})
    monkeypatch.setattr(calibrate, "LINEAR_ROWS", {"cpu": 32})
    monkeypatch.setattr(calibrate, "measure_gemm_rate", lambda *arguments, **settings: 1e11)
    monkeypatch.setattr(calibrate.psutil, "cpu_percent", lambda interval: 0.0)
    monkeypatch.setattr(
        storage_runs, "least_seconds", lambda run, device, at_least_s: least_seconds(run, device, 0.0)
    )
    interference = partial(storage_runs.measure_interference, seconds=0.1)
    monkeypatch.setattr(calibrate, "measure_interference", interference)
    monkeypatch.setattr(calibrate, "measure_decode_rates", lambda *arguments: {"nf4": 1e9})
    monkeypatch.setattr(storage_runs, "FILE_BYTES", 2 << 20)
    monkeypatch.setattr(storage_runs, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(storage_runs, "STORE_ROWS", 1024)
    monkeypatch.setattr(storage_runs, "STORE_WIDTH", 64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the small sizes are the CPU's")
def test_a_calibration_is_saved_where_plans_look_for_it(small_machine, tmp_path, capsys):
    assert calibrate.run_calibration(CalibrateConfig(folder=tmp_path / "disk")) == 0
    profile = load_profile(None)
    assert profile == read_profile(calibrated_path())
    assert profile.machine == describe_machine()
    assert set(profile.compute) == {"float32", "bfloat16", "int8"}
    assert profile.disk_bytes_per_s > 0
    assert profile.read_interference >= 0
    assert profile.rates("float32", "dense").two_lanes_gain == profile.two_lanes_gain
    assert torch.get_num_threads() == 1 or 0.01 < profile.two_lanes_gain < 100
    assert not list((tmp_path / "disk").iterdir())
    assert "whole layers fitted to" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="the small sizes are the CPU's")
def test_a_calibration_may_go_to_a_file(small_machine, tmp_path):
    calibrate.run_calibration(CalibrateConfig(folder=tmp_path / "disk", out=tmp_path / "here.json"))
    assert not calibrated_path().exists()
    assert load_profile(str(tmp_path / "here.json")).name == "this machine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the small sizes are the CPU's")
def test_an_interrupted_calibration_goes_on(small_machine, tmp_path, monkeypatch, capfd):
    config = CalibrateConfig(folder=tmp_path / "disk", out=tmp_path / "here.json")
    measured: list[str] = []
    measure = calibrate.measure_compute

    def note(dtype, linear, device):
        measured.append(linear)
        return measure(dtype, linear, device)

    monkeypatch.setattr(calibrate, "measure_compute", note)
    monkeypatch.setattr(calibrate, "measure_disks", interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrate.run_calibration(config)
    assert measured == ["dense", "dense", "int8"]
    assert not config.out.exists()
    assert "3 step(s) are kept" in capfd.readouterr().err
    monkeypatch.setattr(calibrate, "measure_disks", storage_runs.measure_disks)
    assert calibrate.run_calibration(config) == 0
    assert measured == ["dense", "dense", "int8"]
    assert set(load_profile(str(config.out)).compute) == {"float32", "bfloat16", "int8"}
    assert [path.name for path in tmp_path.glob("*.json")] == ["here.json"]


def interrupt(folder: Path) -> None:
    raise KeyboardInterrupt
