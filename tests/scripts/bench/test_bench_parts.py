"""The parts of `strata bench sweep` and the large bench on a tiny shape: each keeps its promises."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from strata.engine.model.decoder import build_decoder
from strata.engine.model.layer_loader import make_loader
from strata.engine.plan.shapes import SHAPES, ModelShape
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader
from strata.scripts.bench.configs import LargeBenchConfig, SweepBenchConfig
from strata.scripts.bench.large import large
from strata.scripts.bench.sweep import peers as peers_part
from strata.scripts.bench.sweep import sweep
from strata.scripts.bench.sweep.agreement import run_agreement_part
from strata.scripts.bench.sweep.core import run_core_part
from strata.scripts.bench.sweep.formats import FORMATS, run_formats_part
from strata.scripts.bench.sweep.peers import KEYS, run_peers_part
from strata.scripts.bench.sweep.throttle import PERCENTS, run_throttle_part
from strata.scripts.bench.workloads.baselines import BaselineRun
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.random_storage import STORAGES

# Wide enough for groups of 128 inputs.
SMALL = ModelShape(
    name="small",
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=256,
    max_position=512,
)


@pytest.fixture
def config(tmp_path, monkeypatch, fixed_rates) -> SweepBenchConfig:
    monkeypatch.setattr("strata.scripts.bench.calibrate.probes.PROBE_S", 0.001)
    monkeypatch.setitem(SHAPES, SMALL.name, SMALL)
    sizes = {"prefix_tokens": 24, "option_tokens": 4, "num_options": 3, "num_questions": 4, "rounds": 1}
    settings = {"shape": SMALL.name, "folder": tmp_path, "device": "cpu", "micro_batch_tokens": 32}
    few = {"num_dynamic_questions": 1, "num_naive_questions": 1, "peer_questions": 4, "memory_gib": 1.0}
    return SweepBenchConfig(**(sizes | settings | few))  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", STORAGES)
def test_random_storages_are_read_and_decode_to_weights_of_the_usual_size(storage, tmp_path):
    path = make_random_checkpoint(SMALL, tmp_path / storage, storage=storage)
    opened = open_checkpoint(path)
    loader = make_loader(opened, build_decoder(opened.config), torch.float32, TensorReader())
    weights = loader.load(1)
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            assert 0.005 < weight.std() < 0.05, name
            assert torch.isfinite(weight).all()
    stored = load_file(path / "model.safetensors")
    assert len(stored) > len(weights) * SMALL.num_layers
    with pytest.raises(InputError, match="storage"):
        make_random_checkpoint(SMALL, tmp_path / storage)


def test_unknown_storage(tmp_path):
    with pytest.raises(InputError, match="expected one of nf4"):
        make_random_checkpoint(SMALL, tmp_path / "x", storage="q2")  # type: ignore[arg-type]


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


def test_throttle_part(config):
    result = run_throttle_part(config)
    for percent, row in zip(PERCENTS, result["throttle_rows"], strict=True):
        # A throttled source cannot beat its own floor.
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
    def answer(name, checkpoint, questions, folder, *, python):
        assert len(questions) == peers_part.NUM_PEER_QUESTIONS
        return (
            "not installed"
            if name == "airllm"
            else BaselineRun(question_s=(30.0, 30.0), scores=np.ones((2, 5)))
        )

    monkeypatch.setattr(peers_part, "measure_peer", answer)
    result = run_peers_part(config)
    assert result["airllm_left_out"] == "not installed"
    assert "over_airllm" not in result
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


@pytest.mark.parametrize("storage", [None, "nf4"])
def test_large_bench_limits_the_child_and_removes_the_checkpoint(storage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(large, "RESULTS", tmp_path / "results")
    settings = {"shape": "tiny", "storage": storage, "folder": tmp_path, "limit_gib": 3.0, "memory_gib": 1.0}
    config = LargeBenchConfig(**settings, prefix_tokens=24, option_tokens=4, dtype="float32")
    held = bytearray(b"1" * (3 << 30))  # what this process holds is not the child's peak
    assert large.run_large_bench(config) == 0
    assert len(held) == 3 << 30
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0.1 < measured["peak_rss_gib"] < 3
    assert measured["tokens"] == 2 * (24 + 5 * 4)
    assert not list(Path(tmp_path).glob("tiny-*"))


def test_large_bench_says_when_the_child_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "RESULTS", tmp_path / "results")
    config = LargeBenchConfig(shape="tiny", folder=tmp_path, limit_gib=3.0, memory_gib=0.0001)
    with pytest.raises(InputError, match="ended with status"):
        large.run_large_bench(config)
    assert not list(Path(tmp_path).glob("tiny-*"))
