"""What a sweep may cost a card: host waits, kernels, device and pinned memory. Checked against the plan."""

from __future__ import annotations

import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from ...families import LAYERS_PER_MODEL, SHAPE, randomize_weights, save_with_tokenizer

WIDE = {**SHAPE, "hidden_size": 256, "intermediate_size": 704}
WAITS = 2.0
"""Host waits a micro-batch and layer: one, whether float16 overflowed; a few in the last layer."""

KERNELS = 60.0
"""Kernels a micro-batch and dense layer: 57 were counted, 48 of them transformers' own norms, rotary
embedding, SiLU and residuals, an operation each."""

ATTENTION = "kernels/prefix_attention"
"""Its masks and tiles depend on the questions, and are not counted here."""


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """Wide enough for weights and activations to outweigh what a plan leaves out, such as rotary tables."""
    model = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**WIDE), dtype=torch.float32)
    randomize_weights(model)
    return save_with_tokenizer(model, tmp_path_factory.mktemp("wide") / "model")


def visits(run) -> int:
    """Micro-batches times layers."""
    return run.record["plan"]["num_micro_batches"] * LAYERS_PER_MODEL


def in_sweep(counter: Counter) -> int:
    """Counted by the workers, outside of attention."""
    return sum(
        count
        for one, count in counter.items()
        if one.thread.startswith("sweep-") and not one.place.startswith(ATTENTION)
    )


SWEEP = {"head": "letters", "debias": "rotate", "dtype": "float16", "micro_batch_tokens": 128}


@pytest.mark.parametrize("devices", ["cuda:0", "cuda:0,cuda:1"])
def test_waits_and_kernels_of_a_layer(devices, wide_model, score, accounts):
    run = score(model=wide_model, devices=devices, resident_layers=1, **SWEEP)
    assert in_sweep(accounts.waits) / visits(run) <= WAITS, accounts.summary()
    assert in_sweep(accounts.kernels) / visits(run) <= KERNELS, accounts.summary()


def assert_memory_as_planned(run, accounts) -> None:
    plan, measured = run.record["plan"], run.record["measured"]
    for device, peak in measured["peak_device_bytes"].items():
        assert peak <= plan["memory_bytes"], device
    assert accounts.peak_bytes["pinned"] <= plan["host_bytes"]


@pytest.mark.parametrize(("devices", "hidden_store"), [("cuda:0", "device"), ("cuda:0,cuda:1", "ram")])
def test_memory_is_what_the_plan_says(hidden_store, devices, wide_model, score, accounts):
    run = score(model=wide_model, devices=devices, hidden_store=hidden_store, resident_layers=0, **SWEEP)
    assert_memory_as_planned(run, accounts)
    # At least half: the plan is no rough upper bound either.
    assert max(run.record["measured"]["peak_device_bytes"].values()) > run.record["plan"]["memory_bytes"] / 2


def test_pinned_memory_is_not_rounded_up(wide_model, score, accounts):
    run = score(model=wide_model, devices="cuda:0", hidden_store="ram", resident_layers=0, **SWEEP)
    layer_bytes = sum(
        math.prod(weight.shape) * 4
        for name, weight in load_file(wide_model / "model.safetensors").items()
        if ".layers.0." in name
    )
    hidden_bytes = run.record["measured"]["trie_nodes"] * WIDE["hidden_size"] * 2
    assert accounts.peak_bytes["pinned"] < (2 * layer_bytes + hidden_bytes) * 1.05


def test_an_overflow_stays_in_the_plan(wide_model, tmp_path, score, accounts):
    """Every layer's MLP overflows float16 in every micro-batch. Independent check: float32 on the CPU."""
    tensors = load_file(wide_model / "model.safetensors")
    for name, tensor in tensors.items():
        if "up_proj" in name or "down_proj" in name:
            tensor *= 300
    model = shutil.copytree(wide_model, tmp_path / "loud")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    exact = score(model=model, **{**SWEEP, "dtype": "float32"})
    accounts.reset()
    run = score(model=model, devices="cuda:0", hidden_store="ram", resident_layers=0, **SWEEP)
    assert run.record["measured"]["float32_micro_batches"] == run.record["plan"]["num_micro_batches"]
    tolerance = 0.02 * max(np.ptp(row.scores) for row in exact.scores)
    for row, exact_row in zip(run.scores, exact.scores, strict=True):
        np.testing.assert_allclose(row.scores, exact_row.scores, rtol=0, atol=tolerance)
    assert_memory_as_planned(run, accounts)
