"""The roofline beside a sweep: when it is sampled, what is made of it, and where it is told."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from strata.engine.machine import roofline as roofline_module
from strata.engine.machine.measure import GemmProduct
from strata.engine.machine.roofline import RooflineProbe, SeenRoofline, join_seen
from strata.engine.report.summary import describe_speed


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(roofline_module, "perf_counter", found)
    return found


def probe_of(clock: Clock, rates: list[float], **changes) -> RooflineProbe:
    """A probe whose samples give these rates, and take as long as they are asked to."""
    asked = {"device": torch.device("cpu"), "dtype": torch.float32, "width": 512}
    probe = RooflineProbe(**(asked | {"num_workers": 1, "num_devices": 1, "_started": clock.now} | changes))
    left = iter(rates)

    def sample(seconds: float, num_products: int) -> None:
        clock.now += seconds
        probe.num_samples += 1
        probe.sampled_flops += next(left) * seconds * num_products
        probe.sampled_s += seconds * num_products

    probe._sample = sample
    return probe


def test_samples_take_a_hundredth_of_the_time(clock):
    probe = probe_of(clock, [1e9] * 1000)
    advance = probe.beside(lambda count: None)
    for _ in range(2000):
        clock.now += 0.05
        advance(512)
    assert 20 <= probe.num_samples <= 34
    assert probe.between_s <= 0.01 * clock.now
    before = clock.now
    probe.sample_after()
    assert clock.now - before == pytest.approx(0.3)


def test_a_short_sweep_is_sampled_once_at_its_end(clock):
    probe = probe_of(clock, [5e9])
    advance = probe.beside(lambda count: None)
    for _ in range(10):
        clock.now += 0.05
        advance(512)
    assert probe.seen is None
    probe.sample_after()
    assert probe.seen == SeenRoofline(flop_per_s=5e9, num_samples=1, between_s=0.0)
    assert probe.seen.source == "measured beside the sweep, 1 time"


def test_the_mean_counts_and_devices_add_up(clock):
    probe = probe_of(clock, [1e9, 3e9, 5e9], num_devices=2)
    for _ in range(3):
        probe.sample_after()
    assert probe.seen.flop_per_s == pytest.approx(6e9)


def test_a_gpu_is_not_interrupted(clock):
    def advance(count: int) -> None: ...

    assert probe_of(clock, [], device=torch.device("cuda:0")).beside(advance) is advance


def test_parts_of_lanes_that_share_a_cpu_add_up(clock):
    """Each of two lanes reaches 2 GFLOP/s beside the other, and a sample costs the sweep half its time."""
    probe = probe_of(clock, [2e9] * 100, num_workers=2)
    advance = probe.beside(lambda count: None)
    for _ in range(200):
        clock.now += 0.05
        advance(512)
    assert probe.num_samples > 1
    between_s = 0.03 * probe.num_samples
    probe.sample_after()
    assert probe.seen.flop_per_s == pytest.approx(4e9)
    assert probe.seen.between_s == pytest.approx(between_s / 2)


def test_lanes_sample_one_at_a_time(clock):
    probe = probe_of(clock, [1e9] * 10, num_workers=2)
    clock.now += 100.0
    probe._is_sampling.acquire()
    probe.sample_between()
    assert probe.num_samples == 0
    probe._is_sampling.release()
    probe.sample_between()
    assert probe.num_samples == 1


def test_after_the_sweep_as_many_products_run_as_there_were_lanes(monkeypatch):
    begun = threading.Barrier(2, timeout=10)

    def call_seconds(product: GemmProduct, seconds: float) -> list[float]:
        begun.wait()
        return [0.5, 0.5]

    monkeypatch.setattr(GemmProduct, "call_seconds", call_seconds)
    probe = RooflineProbe(
        device=torch.device("cpu"), dtype=torch.float32, width=64, num_workers=2, num_devices=1
    )
    probe.sample_after()
    flops = 2 * 512 * 64 * 64
    assert probe.seen.flop_per_s == pytest.approx(2 * flops / 0.5)


def test_sweeps_one_after_the_other_have_a_roofline_together():
    """10 s at 1 TFLOP/s and 10 s at 3: 40 TFLOP in 20 s."""
    slow = SeenRoofline(flop_per_s=1e12, num_samples=1, between_s=0.0)
    fast = SeenRoofline(flop_per_s=3e12, num_samples=2, between_s=0.5)
    assert join_seen([(1e13, slow), (3e13, fast)]) == SeenRoofline(
        flop_per_s=2e12, num_samples=3, between_s=0.5
    )
    assert join_seen([(1e13, slow), (3e13, None)]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_a_product_is_really_timed(dtype):
    product = GemmProduct.of_width(torch.device("cpu"), dtype, 64, 128)
    assert product.weight.shape == (128, 64)
    assert 1e6 < product.best_flop_per_s(0.0) < 1e16


def test_a_run_tells_which_roofline_it_was(checkpoint, score):
    run = score(model=checkpoint("llama-gqa"))
    measured = json.loads((run.out / "run.json").read_text())["measured"]
    assert measured["roofline_from"] == "measured beside the sweep, 1 time"
    assert 1e7 < measured["roofline_flop_per_s"] < 1e16
    assert 0 < measured["roofline_fraction"] <= 1
    told = describe_speed(run.record, measured)
    assert told.endswith("of the GEMM roofline (measured beside the sweep, 1 time)")
    assert told in (run.out / "report.html").read_text()


def test_no_run_tells_more_than_all_of_its_roofline(checkpoint, score, monkeypatch):
    monkeypatch.setattr(GemmProduct, "call_seconds", lambda self, seconds: [1e9])
    run = score(model=checkpoint("llama-gqa"))
    measured = run.record["measured"]
    assert measured["roofline_fraction"] == 1.0
    assert measured["roofline_flop_per_s"] < 10
    assert describe_speed(run.record, measured).startswith("all of the GEMM roofline")
