"""The training bench on a tiny shape: its keys, and that both ways learn the same from the same question."""

from __future__ import annotations

import json

import pytest
import torch

from strata.scripts.bench.configs import TrainBenchConfig
from strata.scripts.bench.train import train
from strata.scripts.bench.train.step import load_peft_model, to_examples, train_settings, unpacked_step
from strata.training.readers.resident_reader import open_resident_reader


@pytest.fixture
def config(tmp_path) -> TrainBenchConfig:
    sizes = {"prefix_tokens": 24, "option_tokens": 4, "num_layers": 2, "rounds": 1}
    return TrainBenchConfig(shape="tiny", folder=tmp_path, dtype="float32", device="cpu", **sizes)


def test_figures_and_config_are_recorded(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "RESULTS", tmp_path / "results")
    assert train.run_train_bench(config) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["train_packed_ceiling_tokens"] == pytest.approx(5 * 28 / 44)
    assert result["train_packed_over_unpacked"] > 0
    assert result["train_streamed_over_resident"] > 0
    assert result["demo_map3"] >= 0.85 > result["demo_map3_without_retrieval"]
    assert str(tmp_path) not in json.dumps(result)


def test_part_large_runs_under_its_limit(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "RESULTS", tmp_path / "results")
    large = {"parts": ("large",), "large_shape": "tiny", "limit_gib": 3.0}
    assert train.run_train_bench(TrainBenchConfig(**{**vars(config), **large})) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0.1 < result["train_streamed_peak_gib"] < 3
    assert result["large_under_limit"]
    assert not list(tmp_path.glob("tiny-bf16"))


def test_packed_and_unpacked_have_the_same_loss(config):
    checkpoint, questions, device = train.make_job(config)
    reader = open_resident_reader(train_settings(checkpoint, config.folder, "float32", "cpu"))
    model = load_peft_model(checkpoint, torch.float32, device)
    with torch.no_grad():
        head = model.base_model.model.score.modules_to_save["default"].weight
        head.copy_(reader.trained.classifier_weight)
    loss = reader.accumulate_gradients(to_examples(questions), seed=0)
    assert unpacked_step(model, questions, device) == pytest.approx(loss, rel=1e-5)
