"""What --dtype auto computes in: the checkpoint's dtype where the device is fast in it, else another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from strata.engine.machine import product_rates
from strata.engine.types import Question
from strata.engine.weights.checkpoint import open_checkpoint
from strata.training.config import TrainConfig
from strata.training.readers.decoder_reader import DecoderReader
from strata.training.readers.devices import choose_dtype
from strata.training.readers.resident_reader import open_resident_reader
from strata.training.readers.streamed_reader import open_streamed_reader
from strata.training.types import Example

FAST_CPU = {"float32": 1e11, "bfloat16": 2e11, "int8": 3e11}
SLOW_CPU = {"float32": 1e11, "bfloat16": 1e10, "int8": 1e10}


@pytest.fixture
def set_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """Makes this machine one whose CPU multiplies at these rates."""

    def pretend(rates: dict[str, float]) -> None:
        monkeypatch.setattr(
            product_rates, "_product_rates", lambda *where: product_rates.ProductRates(flop_per_s=rates)
        )

    return pretend


@pytest.fixture(scope="module")
def stored(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16 whose embedding is its vocabulary projection too."""
    plain, folder = checkpoint("llama-tied"), tmp_path_factory.mktemp("stored") / "bfloat16"
    AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return folder


def config(model: Path, **changes: object) -> TrainConfig:
    return TrainConfig(model=model, out=model, questions=Path("q.jsonl"), devices="cpu", **changes)


def learn_a_step(reader: DecoderReader) -> None:
    question = Question(id="q", prompt="tide turns", options=("tide", "turns"), answer=0)
    (prompt,) = reader.render([question])
    loss = reader.accumulate_gradients([Example(prompt=prompt, labels=np.array([1.0, 0.0]))], seed=0)
    assert np.isfinite(loss)


@pytest.mark.parametrize(
    ("rates", "setting", "expected"),
    [
        (FAST_CPU, "auto", torch.bfloat16),
        (SLOW_CPU, "auto", torch.float32),
        (SLOW_CPU, "bfloat16", torch.bfloat16),
        (FAST_CPU, "float32", torch.float32),
    ],
)
def test_auto_follows_the_device_and_a_name_is_obeyed(rates, setting, expected, set_cpu, tmp_path):
    set_cpu(rates)
    cpu = torch.device("cpu")
    assert choose_dtype(config(tmp_path, dtype=setting), torch.bfloat16, cpu) == expected
    assert choose_dtype(config(tmp_path), torch.float32, cpu) == torch.float32


@pytest.mark.parametrize(("rates", "expected"), [(FAST_CPU, torch.bfloat16), (SLOW_CPU, torch.float32)])
@pytest.mark.parametrize("streamed", [False, True])
def test_both_decoder_readers_compute_in_what_was_chosen(rates, expected, streamed, set_cpu, stored):
    set_cpu(rates)
    settings = config(stored, streamed=streamed)
    reader = open_streamed_reader(settings) if streamed else open_resident_reader(settings)
    assert reader.dtype == expected
    assert reader.trained.decoder.base.get_submodule("norm").weight.dtype == expected
    learn_a_step(reader)
    if streamed:
        reader.close()


@pytest.mark.parametrize(
    ("setting", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)], ids=["auto", "float32"]
)
@pytest.mark.parametrize("task", ["choice", "letters"])
def test_a_whole_checkpoint_keeps_its_dtype_unless_told_otherwise(
    setting, expected, task, set_cpu, stored, tmp_path
):
    set_cpu(SLOW_CPU)
    reader = open_resident_reader(config(stored, full=True, dtype=setting, task=task))
    assert reader.dtype == torch.float32
    learn_a_step(reader)
    with torch.no_grad():
        for weight in reader.trained.module.parameters():
            weight += 0.25
    reader.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    classifier = {name: saved.pop(name) for name in list(saved) if name.startswith("score.")}
    assert {weight.dtype for weight in classifier.values()} == (
        {torch.float32} if task == "choice" else set()
    )
    assert {weight.dtype for weight in saved.values()} == {expected}
    assert "lm_head.weight" not in saved, "tied weights are saved once"
    table = reader.trained.decoder.base.get_submodule("embed_tokens").weight
    assert torch.equal(saved["model.embed_tokens.weight"], table.to(expected))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(expected).removeprefix("torch.")
    assert open_checkpoint(tmp_path).stored_dtype == expected
