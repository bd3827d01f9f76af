"""Planned memory against the tensors that a real step keeps, and budgets that are too small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from strata.engine.plan.shapes import SHAPES, to_llama_config
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.training.config import TrainConfig
from strata.training.readers.decoder_pass import run_layer
from strata.training.readers.memory_plan import (
    PROBE_TOKENS,
    _chain,
    absent_shape,
    count_saved_bytes,
    count_trained,
    fit_micro_batch,
    plan_memory,
    shape_of,
)
from strata.training.readers.packed_batch import pack_examples
from strata.training.readers.resident_reader import open_resident_reader


@pytest.fixture
def config(checkpoint, tmp_path) -> TrainConfig:
    return TrainConfig(
        model=checkpoint("llama-gqa"), out=tmp_path, questions=Path("q.csv"), lora_dropout=0.0, devices="cpu"
    )


def test_what_is_counted_on_meta_is_what_a_real_layer_keeps(config):
    reader = open_resident_reader(config)
    decoder = reader.trained.decoder
    packed = pack_examples([_chain(PROBE_TOKENS)], torch.device("cpu"))
    decoder.prepare_rope(PROBE_TOKENS, torch.device("cpu"), torch.float32)
    weights = {weight.untyped_storage().data_ptr() for weight in reader.trained.module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hidden = torch.randn(PROBE_TOKENS, decoder.config.hidden_size, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run_layer(decoder, 0, hidden, packed, 0)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / PROBE_TOKENS
    shape = shape_of(config, open_checkpoint(config.model), torch.float32)
    counted = count_saved_bytes(shape.skeleton)
    assert counted == pytest.approx(real, rel=0.02)


def test_streaming_and_checkpointing_keep_less(config):
    checkpoint = open_checkpoint(config.model)
    shape = shape_of(config, checkpoint, torch.float32)
    sizes = {"micro_batch_tokens": 1000, "step_tokens": 4000, "on_cpu": True}
    resident, streamed, recomputed = (
        plan_memory(changed, shape, **sizes)
        for changed in (config, replace(config, streamed=True), replace(config, gradient_checkpointing=True))
    )
    assert streamed.activations < recomputed.activations < resident.activations
    assert streamed.weights < resident.weights
    assert streamed.boundaries == 4000 * checkpoint.num_layers * checkpoint.config.hidden_size * 4
    assert resident.boundaries == 0
    assert resident.trained == streamed.trained > 0


def test_a_budget_sets_the_micro_batch(config):
    shape = shape_of(config, open_checkpoint(config.model), torch.float32)
    sizes = {"most": 4096, "on_cpu": True}
    tokens = fit_micro_batch(config, shape, 0.01, **sizes)
    assert 256 < tokens < 4096
    planned = plan_memory(config, shape, micro_batch_tokens=tokens, step_tokens=0, on_cpu=True)
    assert planned.device <= 0.01 * 2**30
    assert fit_micro_batch(config, shape, 10.0, **sizes) == 4096
    assert open_resident_reader(replace(config, memory_gib=0.01)).micro_batch_tokens == tokens


def test_a_budget_too_small_is_refused_with_what_is_needed(config):
    shape = shape_of(config, open_checkpoint(config.model), torch.float32)
    with pytest.raises(InputError, match=r"--memory-gib 0.001: .* expected that much, or --streamed"):
        fit_micro_batch(config, shape, 0.001, most=4096, on_cpu=True)


def test_a_70b_in_nf4_trains_on_one_card_of_16_gib(tmp_path):
    config = TrainConfig(model=tmp_path, out=tmp_path, questions=Path("q.csv"), streamed=True)
    shape = absent_shape(config, to_llama_config(SHAPES["llama2-70b"]), "nf4", torch.float16)
    plan = plan_memory(config, shape, micro_batch_tokens=1300, step_tokens=16 * 1300, on_cpu=False)
    assert count_trained(shape.skeleton) == 80 * 16 * 161_792 + 8192
    assert plan.device < 14.5 * 2**30
    assert plan.host < 31 * 2**30
    assert any("on the device" in line for line in plan.describe())
