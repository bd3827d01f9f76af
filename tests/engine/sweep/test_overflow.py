"""What becomes of numbers: what overflows float16 is computed in float32, and NaN never becomes a score."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from strata.scripts.cli import main

from ...families import LAYERS_PER_MODEL
from .run_folder import assert_run_ended

pytestmark = [pytest.mark.usefixtures("fixed_rates"), pytest.mark.timeout(60)]

LAST_LAYER = LAYERS_PER_MODEL - 1
PARTLY = 130.0
"""An MLP's weights so much larger overflow in some micro-batches only."""
Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def altered(checkpoint, tmp_path):
    """`altered(change, family, kind)` -> a copy of a tiny checkpoint, its tensors edited by `change`."""

    def make(change: Change, family: str = "llama-gqa", kind: str = "causal_lm") -> Path:
        folder = shutil.copytree(checkpoint(family, kind), tmp_path / "altered")
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def overflow_mlp(layer: int, scale: float = 400.0) -> Change:
    """The layer's MLP gives more than 65504, float16's largest number; no weight is that large."""

    def change(tensors):
        for name in ("up_proj", "down_proj"):
            tensors[f"model.layers.{layer}.mlp.{name}.weight"] *= scale

    return change


def overflow_values(layer: int) -> Change:
    """The layer's attention values are beyond 65504; its output is not."""

    def change(tensors):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] *= 1e3
        for name, scale in (("q_proj", 1e-3), ("k_proj", 1e-3), ("v_proj", 300.0), ("o_proj", 1e-3)):
            tensors[f"{prefix}self_attn.{name}.weight"] *= scale

    return change


def overflow_final_norm() -> Change:
    """The readouts are beyond 65504; the projection makes up for it."""

    def change(tensors):
        tensors["model.norm.weight"] *= 1e5 / 2
        tensors["lm_head.weight"] *= 2e-5

    return change


def assert_as_in_float32(run, exact) -> None:
    """Equal up to float16's own rounding, about 1e-3 a layer: far less than what the options differ by."""
    tolerance = 0.02 * max(np.ptp(row.scores) for row in exact.scores)
    for row, exact_row in zip(run.scores, exact.scores, strict=True):
        np.testing.assert_allclose(row.scores, exact_row.scores, rtol=0, atol=tolerance)
    assert exact.record["measured"]["float32_micro_batches"] == 0
    assert exact.record["warnings"]["messages"] == []


def assert_overflow_told(run, layer: int) -> None:
    count = run.record["measured"]["float32_micro_batches"]
    assert count > 0
    (message,) = json.loads((run.out / "run.json").read_text())["warnings"]["messages"]
    assert message.startswith(f"{count} micro-batch(es) were not finite")
    assert f"first in layer {layer}" in message


@pytest.mark.parametrize("size", [10_000, 24], ids=["one micro-batch", "prefixes over several"])
@pytest.mark.parametrize("layer", [0, 1, LAST_LAYER])
@pytest.mark.parametrize("overflow", [overflow_mlp, overflow_values])
def test_what_overflows_float16_is_computed_in_float32(overflow, layer, size, altered, score):
    settings = {"model": altered(overflow(layer)), "head": "yes-no", "micro_batch_tokens": size}
    exact, run = score(**settings), score(dtype="float16", **settings)
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, layer)


def test_readouts_that_overflow_float16(altered, score):
    settings = {"model": altered(overflow_final_norm()), "head": "yes-no", "micro_batch_tokens": 24}
    exact, run = score(**settings), score(dtype="float16", **settings)
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, LAST_LAYER)


LAYOUTS = {
    "disk": {"hidden_store": "disk", "resident_layers": 0},
    "two devices, groups": {"devices": "cpu,cpu", "num_groups": 2, "resident_layers": 1},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_micro_batches_that_overflow_are_computed_again(layout, altered, score):
    model = altered(overflow_mlp(1, scale=PARTLY))
    settings = {"model": model, "head": "letters", "debias": "rotate", "micro_batch_tokens": 24}
    exact, run = score(**settings), score(dtype="float16", **settings, **LAYOUTS[layout])
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, 1)
    measured, plan = run.record["measured"], run.record["plan"]
    assert measured["float32_micro_batches"] < plan["num_micro_batches"]
    assert measured["bytes_read"] == plan["bytes_read"]
    assert measured["tokens_computed"] == measured["trie_nodes"]


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_overflow_inside_a_layer_of_other_families(family, altered, score):
    # Gemma 2 normalizes what the MLP gives: its hidden states fit float16 although the MLP's output does not.
    settings = {"model": altered(overflow_mlp(1), family), "head": "yes-no", "micro_batch_tokens": 24}
    exact, run = score(**settings), score(dtype="float16", **settings)
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, 1)


def test_overflow_with_a_classifier_head(altered, score):
    model = altered(overflow_mlp(LAST_LAYER), kind="classifier")
    exact, run = score(model=model), score(model=model, dtype="float16")
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, LAST_LAYER)


@pytest.mark.parametrize("size", [10_000, 24])
def test_a_micro_batch_that_overflows_counts_once(size, altered, score):
    settings = {"head": "yes-no", "micro_batch_tokens": size, "dtype": "float16"}
    run = score(model=altered(overflow_values(LAST_LAYER)), **settings)
    assert run.record["measured"]["float32_micro_batches"] == run.record["plan"]["num_micro_batches"]


def test_float16_without_overflow_says_nothing(checkpoint, score):
    run = score(model=checkpoint("llama-gqa"), head="yes-no", dtype="float16")
    assert run.record["measured"]["float32_micro_batches"] == 0
    assert run.record["warnings"]["messages"] == []


NOT_NUMBERS = {
    "embedding": ("model.embed_tokens.weight", math.nan),
    "keys": ("model.layers.1.self_attn.k_proj.weight", math.nan),
    "infinite": ("model.layers.0.mlp.down_proj.weight", math.inf),
    "last layer": (f"model.layers.{LAST_LAYER}.mlp.up_proj.weight", math.nan),
    "final norm": ("model.norm.weight", math.nan),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("culprit", NOT_NUMBERS)
def test_weights_that_are_not_numbers_end_the_run(culprit, dtype, altered, questions, tmp_path, capsys):
    name, number = NOT_NUMBERS[culprit]
    model = altered(lambda tensors: tensors[name].view(-1)[5::7].fill_(number))
    assert_floating_point_error(model, questions, tmp_path / "out", capsys, "--dtype", dtype)


def test_the_questions_of_readouts_that_are_not_finite_are_named(altered, score):
    """A token's embedding is NaN. Independent check: whose prompts hold it, by prompts.jsonl."""
    settings = {"model": altered(lambda tensors: None), "head": "letters", "micro_batch_tokens": 24}
    prompts = [
        json.loads(line)
        for line in (score(**settings).out / "prompts.jsonl").read_text(encoding="ascii").splitlines()
    ]
    ids_of = {prompt["id"]: {one for b in prompt["branches"] for one in b["ids"]} for prompt in prompts}
    first, *others = ids_of.values()
    odd = min(first - set().union(*others))
    weights = settings["model"] / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][odd] = math.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(FloatingPointError) as raised:
        score(**settings)
    assert str(raised.value).endswith(f"(question id {prompts[0]['id']!r})")
    with pytest.raises(FloatingPointError, match=r"--dtype float32"):
        score(**settings, dtype="bfloat16")


@pytest.mark.parametrize(
    ("kind", "name"), [("causal_lm", "lm_head.weight"), ("classifier", "score.weight")], ids=["lm", "cls"]
)
def test_an_output_layer_that_is_not_numbers_ends_the_run(kind, name, altered, questions, tmp_path, capsys):
    model = altered(lambda tensors: tensors[name].fill_(math.nan), kind=kind)
    assert_floating_point_error(model, questions, tmp_path / "out", capsys)


def assert_floating_point_error(model: Path, questions: Path, out: Path, capsys, *more: str) -> None:
    given = ["score", "--model", str(model), "--questions", str(questions), "--out", str(out)]
    capsys.readouterr()
    assert main([*given, "--devices", "cpu", *more]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "not finite" in line
    assert_run_ended(out, "failed", "FloatingPointError", "not finite")
