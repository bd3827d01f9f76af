"""What a sweep may cost a card: host waits, kernels, device and pinned memory. Checked against the plan."""

from __future__ import annotations

import functools
import math
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from strata.engine.machine import roofline
from strata.kernels.int8_linear.quantize import quantize_activations

from ...families import LAYERS_PER_MODEL, SHAPE, randomize_weights, save_with_tokenizer
from ...sample_questions import QUESTIONS, write_jsonl

REAL_WIDTHS = (512, 2048)
WIDE = {**SHAPE, "hidden_size": 256, "intermediate_size": 704}
WAITS = 2.0
"""Host waits a micro-batch and layer; one was counted, whether float16 overflowed."""

KERNELS = 30.0 if find_spec("triton") else 60.0
"""Kernels a micro-batch and dense layer: 25 were counted with norms, rotary embedding and gates
fused, 49 with transformers' own, an operation each."""

SWEEP = {"head": "letters", "debias": "rotate", "dtype": "float16", "micro_batch_tokens": 128}


@pytest.fixture(autouse=True)
def whole_products(monkeypatch):
    """The product that a roofline is sampled with is in a card's peak, so it has the size that it has."""
    monkeypatch.setattr(roofline, "WIDTHS", REAL_WIDTHS)


@pytest.fixture(scope="module")
def build_wide(tmp_path_factory):
    """`build_wide(layers)` -> a Llama whose weights and activations outweigh what a plan leaves out."""

    @functools.cache
    def build(num_layers: int) -> Path:
        config = hf.LlamaConfig(**{**WIDE, "num_hidden_layers": num_layers})
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomize_weights(model)
        return save_with_tokenizer(model, tmp_path_factory.mktemp("wide") / "model")

    return build


@pytest.fixture
def wide_model(build_wide):
    return build_wide(LAYERS_PER_MODEL)


def in_sweep(counter: Counter) -> int:
    """Counted by the workers."""
    return sum(count for one, count in counter.items() if one.thread.startswith("sweep-"))


@pytest.fixture
def cost_of_a_layer(build_wide, score, accounts):
    """`cost_of_a_layer(**settings)` -> waits and kernels a micro-batch and layer, and the last run.

    What is done once a group, and in the last layer, is in both runs that are compared.
    """

    def measure(**settings):
        waits, kernels = [], []
        for num_layers in (2, 4):
            accounts.reset()
            run = score(model=build_wide(num_layers), resident_layers=1, **settings)
            waits.append(in_sweep(accounts.waits))
            kernels.append(in_sweep(accounts.kernels))
        visits = 2 * run.record["plan"]["num_micro_batches"]
        return (waits[1] - waits[0]) / visits, (kernels[1] - kernels[0]) / visits, run

    return measure


@pytest.mark.parametrize("devices", ["cuda:0", "cuda:0,cuda:1"])
def test_what_a_layer_more_costs(devices, cost_of_a_layer, accounts):
    waits, kernels, _ = cost_of_a_layer(devices=devices, **SWEEP)
    assert waits <= WAITS, accounts.summary()
    assert kernels <= KERNELS, accounts.summary()


@pytest.fixture
def many_questions(tmp_path):
    """Enough for a lane to go on for long when the number of outlier columns is known."""
    rows = [
        row | {"id": f"{row['id']}-{copy}", "question": f"{copy}. {row['question']}"}
        for copy in range(8)
        for row in QUESTIONS
    ]
    return write_jsonl(tmp_path / "many.jsonl", rows)


@pytest.mark.parametrize("devices", ["cuda:0", "cuda:0,cuda:1"])
def test_what_int8_waits_for(devices, many_questions, build_wide, cost_of_a_layer, score, accounts):
    """No int8 check, whose sweeps would count twice; products are measured in a run before."""
    settings = SWEEP | {"dtype": "int8", "int8_check_questions": 0, "micro_batch_tokens": 256}
    score(model=build_wide(2), devices=devices, **settings)
    waits, _, run = cost_of_a_layer(questions=many_questions, devices=devices, **settings)
    assert run.record["plan"]["linear"] == "int8"
    assert waits <= WAITS, accounts.summary()


def test_columns_of_a_known_number_are_not_waited_for(accounts):
    x = torch.randn(64, 128, device="cuda:0")
    accounts.reset()
    rounded = quantize_activations(x, num_outliers=5)
    assert not accounts.waits, accounts.summary()
    assert len(rounded.outlier_columns) == 5
    quantize_activations(x)
    assert accounts.waits


def assert_memory_as_planned(run, accounts) -> None:
    plan, measured = run.record["plan"], run.record["measured"]
    for device, peak in measured["peak_device_bytes"].items():
        assert peak <= plan["memory_bytes"], device
    assert accounts.peak_bytes["pinned"] <= plan["host_bytes"]


@pytest.mark.parametrize(("devices", "hidden_store"), [("cuda:0", "device"), ("cuda:0,cuda:1", "ram")])
def test_memory_is_what_the_plan_says(hidden_store, devices, wide_model, score, accounts):
    run = score(model=wide_model, devices=devices, hidden_store=hidden_store, resident_layers=0, **SWEEP)
    assert_memory_as_planned(run, accounts)
    # The plan is no arbitrary bound either; a roofline's sample is most of the peak here.
    assert max(run.record["measured"]["peak_device_bytes"].values()) > run.record["plan"]["memory_bytes"] / 3


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
