"""The probe: it passes what is right in every format and dtype, and stops a run whose weights are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from strata.engine.config import ScoreConfig
from strata.engine.model.layer_loader import LayerLoader
from strata.engine.pack.config import PackConfig
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.run.score import score_questions
from strata.engine.types import InputError

LARGEST = {"float32": 1e-5, "bfloat16": 0.03, "float16": 0.01, "int8": 0.1}


def run(model: Path, questions: Path, out: Path, **settings: object) -> dict:
    flags = {"model": model, "questions": questions, "out": out, "devices": "cpu", "head": "loglik"}
    return score_questions(ScoreConfig.from_flags(**(flags | settings))).record


@pytest.mark.usefixtures("fixed_rates")
@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("family", ["llama-gqa", "llama-tied", "gemma2", "mixtral"])
def test_what_is_right_passes(family, dtype, checkpoint, questions, tmp_path):
    record = run(checkpoint(family), questions, tmp_path / "out", dtype=dtype, int8_check_questions=0)
    (answer,) = record["measured"]["probe"]
    assert answer["num_tokens"] == 16
    assert answer["readout_error"] < LARGEST[dtype]
    assert answer["logit_error"] < LARGEST[dtype]
    assert answer["seconds"] > 0


@pytest.mark.usefixtures("fixed_rates")
@pytest.mark.parametrize("stored", ["int8", "nf4"])
def test_packed_weights_pass(stored, checkpoint, questions, tmp_path):
    packed = tmp_path / "packed"
    pack_checkpoint(PackConfig(model=checkpoint("llama-gqa"), out=packed, format=stored))
    record = run(packed, questions, tmp_path / "out", dtype="float32")
    assert record["measured"]["probe"][0]["readout_error"] < 1e-5


@pytest.mark.usefixtures("fixed_rates")
def test_it_is_skipped_on_request_and_that_is_recorded(checkpoint, questions, tmp_path):
    record = run(checkpoint("llama-gqa"), questions, tmp_path / "out", probe=False)
    assert record["measured"]["probe"] == "skipped (--no-probe)"
    assert "probe" not in record["measured"]["seconds_by_phase"]


def swap_two(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys take the place of values, as two tensors that were mistaken for each other."""
    keys, values = weights["self_attn.k_proj.weight"], weights["self_attn.v_proj.weight"]
    return weights | {"self_attn.k_proj.weight": values, "self_attn.v_proj.weight": keys}


def shift_rows(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A matrix one row off, as a wrong offset in a file gives."""
    name = "mlp.down_proj.weight"
    return weights | {name: weights[name].roll(1, 0)}


@pytest.mark.usefixtures("fixed_rates")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("mistake", [swap_two, shift_rows])
def test_weights_that_are_not_what_is_stored_stop_the_run(
    mistake, dtype, checkpoint, questions, tmp_path, monkeypatch
):
    decode = LayerLoader.decode

    def decode_wrongly(self, layer, raw, out=None):
        return mistake(decode(self, layer, raw, out))

    monkeypatch.setattr(LayerLoader, "decode", decode_wrongly)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"the readouts after the first layer differ .* --no-probe"):
        run(checkpoint("llama-gqa"), questions, out, dtype=dtype, int8_check_questions=0)
    assert not (out / "submission.csv").exists()
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


@pytest.mark.usefixtures("fixed_rates")
def test_a_projection_that_is_not_the_models_stops_the_run(checkpoint, questions, tmp_path, monkeypatch):
    model = checkpoint("llama-gqa")
    monkeypatch.setattr(
        "strata.engine.jobs.known_answer.projection_rows",
        lambda opened, ids: torch.from_numpy(_embedding(model)[ids]),
    )
    with pytest.raises(InputError, match="the logits after the first layer differ"):
        run(model, questions, tmp_path / "out", dtype="float32")


def _embedding(model: Path):
    return load_file(model / "model.safetensors")["model.embed_tokens.weight"].numpy()
