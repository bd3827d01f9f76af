"""A classifier with a bias: its gradient, what scoring makes of it, and where training goes on from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from strata.engine.types import RunWarnings
from strata.training.config import TrainConfig
from strata.training.data.training_set import read_training_set
from strata.training.open_reader import open_reader

from ..tiny_reader import planted_questions, write_rows

BIAS = 0.7


@pytest.fixture
def config(checkpoint, tmp_path) -> TrainConfig:
    return TrainConfig(
        model=checkpoint("llama-gqa"),
        out=tmp_path / "out",
        questions=write_rows(tmp_path / "train.jsonl", planted_questions(6)),
        task="binary",
        head_bias=True,
        lora_r=2,
        lora_dropout=0.0,
        devices="cpu",
    )


def bias_of(reader) -> torch.nn.Parameter:
    bias = reader.trained.classifier_bias
    with torch.no_grad():
        bias.fill_(BIAS)
    return bias


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("task", ["binary", "contrast"])
def test_the_gradient_of_a_bias_is_the_mean_error(task, streamed, config):
    """Independent check: of binary cross-entropy it is the mean of sigmoid(score) - label."""
    config = replace(config, task=task, streamed=streamed)
    reader = open_reader(config)
    bias = bias_of(reader)
    data = read_training_set(config, RunWarnings())
    batch = data.train.read(reader, range(6), epoch=None)
    scores = np.concatenate(reader.score(batch))
    labels = np.concatenate([example.labels for example in batch])
    reader.accumulate_gradients(batch, seed=0)
    assert bias.grad.item() == pytest.approx(float(np.mean(1 / (1 + np.exp(-scores)) - labels)), abs=1e-5)


def test_scoring_adds_the_bias_and_training_goes_on_with_it(config, score, tmp_path):
    reader = open_reader(config)
    bias_of(reader)
    data = read_training_set(config, RunWarnings())
    expected = reader.score(data.train.read(reader, range(6), epoch=None))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    reader.save(adapter)
    saved = load_file(adapter / "adapter_model.safetensors")
    assert [weight.item() for name, weight in saved.items() if name.endswith("score.bias")] == [
        pytest.approx(BIAS)
    ]
    run = score(model=config.model, questions=config.questions, adapter=(adapter,), head="binary")
    for row, found in zip(run.scores, expected, strict=True):
        np.testing.assert_allclose(row.scores, found, atol=1e-4)
    resumed = open_reader(replace(config, adapter=adapter, head_bias=False))
    assert resumed.trained.classifier_bias.item() == pytest.approx(BIAS)


def test_without_the_flag_there_is_no_bias(config):
    assert open_reader(replace(config, head_bias=False)).trained.classifier_bias is None
