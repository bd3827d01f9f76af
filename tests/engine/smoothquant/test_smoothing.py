"""SmoothQuant against the model as it was, and against its formula in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.pack.config import PackConfig
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.pack.smoothing import rounding_error, smoothing_scales
from strata.engine.questions.question_file import read_questions
from strata.engine.scorer import Scorer
from strata.engine.smoothquant.config import CalibrationConfig
from strata.engine.smoothquant.norm_maxima import calibrate_on_questions
from strata.engine.types import InputError, RunWarnings
from strata.scripts.pack import run_pack

ALPHA = 0.75
NORMS_OF_A_LAYER = {
    "llama-gqa": 2,
    "qwen2": 2,
    "qwen3": 2,
    "phi3": 2,
    "gemma2": 2,
    "gemma3": 2,
    # The norm before the experts is read by a router, too.
    "mixtral": 1,
}


def pack(model: Path, questions: Path, out: Path, kind: str, alpha: float = ALPHA) -> Path:
    config = PackConfig(model=model, format=kind, out=out, calibrate=questions, alpha=alpha)
    assert run_pack(config) == 0
    return out


def scores(model: Path, questions: Path, dtype: str) -> np.ndarray:
    asked = read_questions(questions, warnings=RunWarnings())
    member = Member(model=model, head="loglik", normalize="none")
    with Scorer.open([member], MachineSettings(dtype=dtype, devices="cpu")) as scorer:
        return np.concatenate([row.scores for row in scorer.score(asked)])


def plant_outliers(model: Path, out: Path, size: float) -> Path:
    """The model with two channels of its norms enlarged, and the columns that read them made smaller."""
    out.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    weights = load_file(model / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("layernorm.weight"):
            weight[:2] *= size
        elif any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            weight[:, :2] /= size
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("family", NORMS_OF_A_LAYER)
def test_the_folded_model_is_the_unfolded_one(family, checkpoint, questions, fixed_rates, tmp_path) -> None:
    model = checkpoint(family)
    folded = pack(model, questions, tmp_path / "folded", "fp32")
    before, after = scores(model, questions, "float32"), scores(folded, questions, "float32")
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    as_written = hf.AutoModelForCausalLM.from_pretrained(folded, dtype=torch.float32)
    original = hf.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(as_written(ids).logits, original(ids).logits, rtol=1e-5, atol=1e-4)
    changed = [
        name
        for name, weight in as_written.state_dict().items()
        if name.endswith("norm.weight") and not torch.equal(weight, original.state_dict()[name])
    ]
    num_layers = original.config.num_hidden_layers
    assert len(changed) == NORMS_OF_A_LAYER[family] * num_layers


def test_maxima_are_those_of_transformers(checkpoint, questions, fixed_rates, tmp_path) -> None:
    model = checkpoint("llama-gqa")
    found = {
        maxima.norm: maxima
        for maxima in calibrate_on_questions(model, CalibrationConfig(questions=questions), tmp_path).norms
    }
    oracle = hf.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    seen: list[torch.Tensor] = []
    norm = oracle.model.layers[1].input_layernorm
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.abs().amax((0, 1))))
    with Scorer.open([Member(model=model, head="loglik")], MachineSettings(devices="cpu")) as scorer:
        prompts = scorer.render(read_questions(questions, warnings=RunWarnings()))
    for prompt in prompts:
        for branch in prompt.branches:
            with torch.no_grad():
                # The last token of an option is predicted, never computed.
                oracle(torch.as_tensor(branch.token_ids[: branch.targets[-1].position])[None].long())
    maxima = found["layers.1.input_layernorm"]
    torch.testing.assert_close(maxima.activations, torch.stack(seen).amax(0), rtol=1e-4, atol=1e-5)
    layer = oracle.model.layers[1].self_attn
    columns = [part.weight.abs().amax(0) for part in (layer.q_proj, layer.k_proj, layer.v_proj)]
    torch.testing.assert_close(maxima.weights, torch.stack(columns).amax(0))


def test_scales_are_powers_of_two_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(200, generator=generator) * 100
    weights = torch.rand(200, generator=generator)
    found = smoothing_scales(activations, weights, ALPHA)
    exact = activations.double() ** ALPHA / weights.double() ** (1 - ALPHA)
    assert (found.log2() == found.log2().round()).all()
    assert ((found.double() / exact).log2().abs() <= 0.5 + 1e-5).all()
    assert torch.isfinite(smoothing_scales(torch.zeros(3), torch.zeros(3), ALPHA)).all()


def test_int8_is_better_where_activations_have_outliers(checkpoint, questions, fixed_rates, tmp_path) -> None:
    model = plant_outliers(checkpoint("llama-gqa"), tmp_path / "planted", size=64.0)
    exact = scores(model, questions, "float32")
    plain = tmp_path / "plain"
    pack_checkpoint(PackConfig(model=model, format="int8", out=plain))
    smoothed = pack(model, questions, tmp_path / "smoothed", "int8")
    before = np.abs(scores(plain, questions, "int8") - exact).mean()
    after = np.abs(scores(smoothed, questions, "int8") - exact).mean()
    assert after < 0.7 * before


def test_a_weight_with_outliers_stays_plain_and_dense(checkpoint, questions, fixed_rates, tmp_path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    model = plant_outliers(checkpoint("llama-gqa"), tmp_path / "planted", size=1.0)
    weights = load_file(model / "model.safetensors")
    weights[name][:, 0] = 60 * weights[name].square().mean().sqrt()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    packed = pack(model, questions, tmp_path / "packed", "int8")
    stored = load_file(packed / "model.safetensors")
    linears = {key for key in stored if "_proj.weight" in key and not key.endswith("_scale")}
    assert {key for key in linears if stored[key].dtype != torch.int8} == {name}
    assert torch.equal(stored[name], weights[name])
    with Scorer.open([Member(model=packed)], MachineSettings(dtype="int8", devices="cpu")) as scorer:
        decoder = scorer._opened.model.decoders[0]
        assert "mlp.down_proj.weight" not in decoder.int8_names(1)
        assert "mlp.down_proj.weight" in decoder.int8_names(0)
    exact = scores(model, questions, "float32")
    with_scale_a_channel = tmp_path / "plain"
    pack_checkpoint(PackConfig(model=model, format="int8", out=with_scale_a_channel))
    coarse = np.abs(scores(with_scale_a_channel, questions, "int8") - exact).mean()
    assert np.abs(scores(packed, questions, "int8") - exact).mean() < 0.8 * coarse


def test_rounding_error_is_that_of_a_uniform_step() -> None:
    weight = torch.rand(64, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    # A step of 1/127 is off by 1/sqrt(12) of itself; the median of absolute values is 1/2.
    assert rounding_error(weight) == pytest.approx(1 / 127 / 12**0.5 / (0.5 / 0.6745), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "nf4"}, "--calibrate"),
        ({"alpha": 1.5}, "--alpha"),
        ({"calibrate_questions": 0}, "--calibrate-questions"),
        ({"calibrate": Path("absent.csv")}, "absent.csv"),
    ],
)
def test_what_means_nothing_is_one_line(
    changes, message, checkpoint, questions, fixed_rates, tmp_path
) -> None:
    settings = {"model": checkpoint("llama-gqa"), "format": "int8", "out": tmp_path / "out"}
    with pytest.raises(InputError, match=message) as caught:
        run_pack(PackConfig(**(settings | {"calibrate": questions} | changes)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
