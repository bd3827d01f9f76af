"""The parts of `strata bench sweep` on a tiny shape: each keeps its promises."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.sweep import peers as peers_part
from strata.scripts.bench.sweep import sweep
from strata.scripts.bench.sweep.agreement import run_agreement_part
from strata.scripts.bench.sweep.core import run_core_part
from strata.scripts.bench.sweep.formats import FORMATS, run_formats_part
from strata.scripts.bench.sweep.peers import KEYS, run_peers_part
from strata.scripts.bench.sweep.probes import Prober
from strata.scripts.bench.sweep.throttle import PERCENTS, run_throttle_part
from strata.scripts.bench.workloads.baselines import BaselineRun

from ..small_shape import SMALL


@pytest.fixture
def config(tmp_path, monkeypatch, fixed_rates) -> SweepBenchConfig:
    monkeypatch.setattr("strata.scripts.bench.sweep.probes.PROBE_S", 0.001)
    monkeypatch.setitem(SHAPES, SMALL.name, SMALL)
    sizes = {"prefix_tokens": 24, "option_tokens": 4, "num_options": 3, "num_questions": 4, "rounds": 1}
    settings = {"shape": SMALL.name, "folder": tmp_path, "device": "cpu", "micro_batch_tokens": 32}
    few = {"num_dynamic_questions": 1, "num_naive_questions": 1, "peer_questions": 4, "memory_gib": 1.0}
    return SweepBenchConfig(**(sizes | settings | few))  # type: ignore[arg-type]


def test_core_part(config):
    result = run_core_part(config)
    for key in ("resident_over_roofline", "streamed_over_roofline", "int8_over_bf16"):
        assert math.isfinite(result[key])
        assert result[key] > 0
    for key in ("resident_over_naive", "int8_over_dynamic_cache", "streamed_over_resident"):
        assert result[key] > 0
    assert result["rms_difference_from_dynamic_cache"] < 0.05


def test_formats_part_measures_every_format_and_leaves_no_checkpoint(config, tmp_path):
    result = run_formats_part(config)
    assert {name for name in FORMATS if result[f"streamed_over_resident_{name}"] > 0} == set(FORMATS)
    assert not list(tmp_path.glob("format-*"))


def test_throttle_part(config, monkeypatch):
    # A machine that another program slows during a probe would seem to beat its compute floor.
    monkeypatch.setattr(Prober, "gemm_flop_per_s", lambda self: 1e15)
    result = run_throttle_part(config)
    for percent, row in zip(PERCENTS, result["throttle_rows"], strict=True):
        # A throttled source cannot beat the floor of its reads.
        assert 0 < result[f"throttled_{percent}_over_roofline"] <= 1.05
        assert row["seconds"] >= row["I/O floor s"] * 0.95
    assert len(result["cached_sweeps_s"]) == 2


def test_agreement_part(config, checkpoint, questions):
    trained = replace(config, trained_model=checkpoint("llama-gqa"), trained_questions=questions)
    result = run_agreement_part(trained)
    assert 0 < result["int8_top1_agreement"] <= 1
    assert result["int8_rank_agreement"] == result["int8_top1_agreement"] / result["bf16_top1_agreement"]
    exact = [row for row in result["agreement_rows"] if row["dtype"] == "float32"]
    assert all(row["top1_agreement"] == 1 and row["score_rms_error"] == 0 for row in exact)
    assert run_agreement_part(config) == {}


def test_peers_part_compares_with_those_that_answer(config, monkeypatch):
    def answer(name, job, *, python):
        assert len(job.questions) == peers_part.NUM_PEER_QUESTIONS
        return (
            "not installed"
            if name == "airllm"
            else BaselineRun(question_s=(30.0, 30.0), scores=np.ones((2, 5)))
        )

    monkeypatch.setattr(peers_part, "measure_peer", answer)
    result = run_peers_part(config)
    assert result["airllm_left_out"] == "not installed"
    assert "over_airllm" not in result
    for dtype in ("bf16", "int8"):
        before, after = result[f"strata_{dtype}_rounds_s"]
        assert result[f"strata_{dtype}_s"] == pytest.approx((before + after) / 2)
    for peer, (bf16_key, int8_key) in KEYS.items():
        if peer != "airllm":
            assert result[bf16_key] == pytest.approx(30 / result["strata_bf16_s"])
            assert result[int8_key] == pytest.approx(30 / result["strata_int8_s"])


def test_sweep_bench_records_the_parts_asked_for(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "results")
    assert sweep.run_sweep_bench(replace(config, parts=("throttle",))) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "throttled_100_over_roofline" in printed
    assert "resident_over_roofline" not in printed
    assert str(tmp_path) not in json.dumps(printed)
