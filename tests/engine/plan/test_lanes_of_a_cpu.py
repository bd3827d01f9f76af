"""Lanes that share a CPU: when a plan of `--devices auto` has two, and that scores stay what they are.

A lane is a worker with threads of its own; what two of them gain over one is known of a calibrated machine,
and assumed of two threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from strata.engine.machine import machine as machines
from strata.engine.machine import measure
from strata.engine.machine.machine import MachineSettings, StoredModel, choose_machine
from strata.engine.machine.profile import load_profile
from strata.engine.machine.rates import TWO_LANES_GAIN, LayerRates, MachineRates
from strata.engine.plan import sweep_job
from strata.engine.types import InputError

from ...sample_questions import QUESTIONS, write_jsonl
from .small_plans import named_gib

RATES = MachineRates(gemm_flop_per_s=1e11, disk_bytes_per_s=1e9)
LAYER = LayerRates(linear_flop_per_s=8e10, attention_flop_per_s=4e10, call_s=1e-3)

Gain = Callable[[float | None], None]


@pytest.fixture
def set_gain(fixed_rates: None, monkeypatch: pytest.MonkeyPatch) -> Gain:
    """`set_gain(1.1)`: the machine's two lanes are so many times as fast as one; tiny lanes are worth it."""
    monkeypatch.setattr(sweep_job, "LEAST_LANE_TOKENS", 8)

    def use(gain: float | None) -> None:
        rates = replace(RATES, two_lanes_gain=gain)
        monkeypatch.setattr(machines, "measure_rates", lambda *arguments: rates)

    return use


def chosen(tmp_path, devices: str = "auto") -> machines.Machine:
    stored = StoredModel(dtype=torch.float32, hidden_size=64, file=tmp_path)
    return choose_machine(MachineSettings(devices=devices), stored)


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
@pytest.mark.parametrize(
    ("gain", "devices", "most_lanes"),
    [(None, "auto", 1), (0.9, "auto", 1), (1.0, "auto", 2), (1.5, "auto", 2), (1.5, "cpu", 1)],
)
def test_two_lanes_where_they_are_known_to_be_no_slower(gain, devices, most_lanes, set_gain, tmp_path):
    set_gain(gain)
    machine = chosen(tmp_path, devices)
    assert machine.devices == ("cpu",)
    assert machine.most_lanes == most_lanes
    assert machine.worker_devices == ("cpu",) * most_lanes


def test_a_gpu_has_one_lane():
    profile, settings = load_profile("kaggle-2xt4"), MachineSettings()
    machine = machines.profiled_machine(settings, profile, torch.float16, "dense")
    assert machine.most_lanes == 1
    assert machine.worker_devices == ("cuda:0", "cuda:1")


@pytest.mark.parametrize(("num_threads", "gain"), [(1, None), (2, TWO_LANES_GAIN), (4, None)])
def test_a_gain_is_assumed_of_two_threads_alone(num_threads, gain, monkeypatch, tmp_path):
    monkeypatch.setattr(measure.torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr(measure, "measure_gemm_rate", lambda *arguments: 6e10)
    monkeypatch.setattr(measure, "measure_disk_rate", lambda file: 1e9)
    found = measure.measure_quickly(("cpu",), torch.float32, 64, tmp_path, "dense")
    assert (found.two_lanes_gain, found.gain, found.gemm_flop_per_s) == (gain, 1.0, 6e10)
    shared = measure.measure_quickly(("cpu", "cpu"), torch.float32, 64, tmp_path, "dense")
    assert (shared.gain, shared.gemm_flop_per_s) == (gain or 1.0, 3e10)


@pytest.mark.parametrize("layer", [None, LAYER], ids=["measured quickly", "calibrated"])
def test_two_lanes_reach_their_gain_together(layer):
    alone = MachineRates(gemm_flop_per_s=1e11, disk_bytes_per_s=1e9, layer=layer, two_lanes_gain=1.5)
    shared = alone.shared_by(2)
    assert 2 * shared.gemm_flop_per_s == alone.gemm_flop_per_s  # the roofline is what it was
    for rate in ("linear_flop_per_s", "attention_flop_per_s"):
        together = 2 * getattr(shared.layer_rates, rate)
        assert together == pytest.approx(1.5 * getattr(alone.layer_rates, rate))
    assert shared.layer_rates.call_s == pytest.approx(2 / 1.5 * alone.layer_rates.call_s)
    assert alone.shared_by(1) is alone


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
def test_auto_scores_in_two_lanes_what_one_scores(set_gain, checkpoint, score):
    set_gain(1.1)
    settings = {"model": checkpoint("llama-gqa"), "head": "yes-no"}
    alone, split = score(**settings), score(devices="auto", **settings)
    assert alone.record["plan"]["devices"] == ["cpu"]
    assert split.record["plan"]["devices"] == ["cpu", "cpu"]
    plan, measured = split.record["plan"], split.record["measured"]
    assert measured["bytes_read"] == plan["bytes_read"]
    assert measured["tokens_computed"] == plan["tokens"] == alone.record["plan"]["tokens"]
    assert plan["predicted_s"] < alone.record["plan"]["predicted_s"]
    for ours, theirs in zip(split.scores, alone.scores, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
def test_bits_that_are_promised_are_those_of_one_lane(set_gain, checkpoint, score, tmp_path):
    set_gain(1.1)
    rows = [row | {"id": f"{row['id']}-{copy}"} for copy in range(4) for row in QUESTIONS]
    settings = {"model": checkpoint("llama-gqa"), "head": "yes-no", "deterministic": True}
    settings["questions"] = write_jsonl(tmp_path / "many.jsonl", rows)
    alone, split = score(**settings), score(devices="auto", **settings)
    assert split.record["plan"]["devices"] == ["cpu", "cpu"]
    for ours, theirs in zip(split.scores, alone.scores, strict=True):
        np.testing.assert_array_equal(ours.scores, theirs.scores)


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
def test_a_long_prefix_that_all_options_share_is_not_split(set_gain, checkpoint, score, tmp_path):
    """It lies in one lane, which would have all the work but a fraction."""
    set_gain(1.1)
    rows = [dict(QUESTIONS[0], context="river sand " * 40)]
    questions = write_jsonl(tmp_path / "long.jsonl", rows)
    run = score(model=checkpoint("llama-gqa"), head="yes-no", devices="auto", questions=questions)
    assert run.record["plan"]["devices"] == ["cpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
def test_a_small_job_is_not_split(set_gain, checkpoint, score, monkeypatch):
    set_gain(1.1)
    monkeypatch.setattr(sweep_job, "LEAST_LANE_TOKENS", 100_000)
    run = score(model=checkpoint("llama-gqa"), head="yes-no", devices="auto")
    assert run.record["plan"]["devices"] == ["cpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
def test_where_one_micro_batch_fits_there_is_one_lane(set_gain, checkpoint, score):
    set_gain(1.1)
    settings = {"model": checkpoint("llama-gqa"), "head": "yes-no", "micro_batch_tokens": 64}
    with pytest.raises(InputError, match="--memory-gib") as raised:
        score(devices="cpu", memory_gib=1e-6, **settings)
    run = score(devices="auto", memory_gib=named_gib(raised.value), **settings)
    assert run.record["plan"]["memory_bytes"] <= run.record["plan"]["budgets"]["device_bytes"]
