"""`--dtype int8`: against transformers with its linears faked in 8 bits, and what the run says of itself."""

import json
import shutil
from functools import partial

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from strata.engine.model import int8_linears
from strata.engine.run import score as score_module
from strata.engine.run.int8_check import compare_scores, sample_prompts
from strata.engine.types import Question, QuestionScores
from strata.kernels.int8_linear.quantize import quantize_activations

from ...families import FAMILIES, LAYERS_PER_MODEL, randomize_weights
from ...reference import Reference
from ...sample_questions import QUESTIONS, write_jsonl

LARGEST_SHARE_OF_STEP = 0.25
"""A value that rounds the other way in one of the two runs moves a score, by less than int8 itself does."""


class FakeInt8Linear(torch.nn.Module):
    """A linear by definition: weights have a scale a row, inputs a scale a token, no columns stay apart."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.weight = (linear.weight / scale).round() * scale
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = (rows.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-30)
        faked = (rows / scale).round() * scale
        return torch.nn.functional.linear(faked, self.weight, self.bias).view(*x.shape[:-1], -1)


class Int8Reference(Reference):
    """transformers in float32 with every linear of the decoder layers faked."""

    def _load(self, model_class: type, **settings: object) -> torch.nn.Module:
        model = super()._load(model_class, **settings)
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear) and ".layers." in name:
                model.set_submodule(name, FakeInt8Linear(module))
        return model


@pytest.fixture
def int8_score(score, monkeypatch):
    """`score` with int8 linears and float32 activations, so that int8 is all that rounds."""
    from strata.engine.machine import machine

    resolve = machine.resolve_dtype
    monkeypatch.setattr(
        machine,
        "resolve_dtype",
        lambda setting, *rest: torch.float32 if setting in ("int8", "auto") else resolve(setting, *rest),
    )
    return lambda **settings: score(**({"dtype": "int8", "micro_batch_tokens": 100_000} | settings))


def flat_scores(scores: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(scores.values()))


def run_scores(run) -> np.ndarray:
    return np.concatenate([row.scores for row in run.scores])


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


NARROW = ("llama-gqa", "llama-tied", "qwen2", "phi3")


@pytest.fixture(params=NARROW)
def narrow_model(request, tmp_path):
    """A model whose activations are all about as large."""
    if request.param not in FAMILIES:
        pytest.skip(f"no family {request.param}")
    from ...families import CONFIGS, save_with_tokenizer

    model = hf.AutoModelForCausalLM.from_config(CONFIGS[request.param](), dtype=torch.float32)
    randomize_weights(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(0.5)
            elif "up_proj" in name or "gate_up" in name:
                parameter.mul_(0.3)
    return save_with_tokenizer(model, tmp_path / "narrow")


def test_scores_equal_transformers_with_faked_linears(narrow_model, reference, int8_score, monkeypatch):
    # Which columns are outliers depends on the rows of a call, and one branch alone is another call.
    without = partial(quantize_activations, outlier_spread=float("inf"))
    monkeypatch.setattr(int8_linears, "quantize_activations", without)
    run = int8_score(model=narrow_model, head="yes-no")
    exact = flat_scores(reference(narrow_model).score(run.out, "yes_no"))
    faked = flat_scores(Int8Reference(narrow_model).score(run.out, "yes_no"))
    step = rms(faked - exact)
    assert step > 1e-3, "int8 hardly changes the scores: the comparison says nothing"
    assert rms(run_scores(run) - faked) < LARGEST_SHARE_OF_STEP * step


def test_placement_does_not_change_scores(checkpoint, int8_score):
    model = checkpoint("llama-gqa")
    resident = int8_score(model=model, head="letters", resident_layers=LAYERS_PER_MODEL)
    for settings in (
        {"resident_layers": 0},
        {"resident_layers": 1},
        {"resident_layers": 0, "hidden_store": "disk"},
    ):
        run = int8_score(model=model, head="letters", **settings)
        np.testing.assert_array_equal(run_scores(run), run_scores(resident))


@pytest.mark.parametrize("settings", [{"devices": "cpu,cpu"}, {"micro_batch_tokens": 33}], ids=str)
def test_cutting_changes_scores_no_more_than_int8_itself(settings, checkpoint, score, int8_score):
    model = checkpoint("llama-gqa")
    whole, cut = int8_score(model=model), int8_score(model=model, **settings)
    exact = score(model=model)
    assert rms(run_scores(cut) - run_scores(whole)) <= rms(run_scores(whole) - run_scores(exact))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_near_its_float32_scores(family, checkpoint, score, int8_score):
    exact, run = run_scores(score(model=checkpoint(family))), run_scores(int8_score(model=checkpoint(family)))
    assert np.corrcoef(exact, run)[0, 1] > 0.98
    assert not np.array_equal(exact, run)


def make_adapter(model: str, folder, seed: int):
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(hf.AutoModelForCausalLM.from_pretrained(model), lora)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("num_adapters", [1, 2])
def test_adapters_apply_to_int8_weights(num_adapters, checkpoint, score, int8_score, tmp_path):
    model = checkpoint("llama-gqa")
    adapters = tuple(make_adapter(model, tmp_path / f"lora{seed}", seed) for seed in range(num_adapters))
    exact = run_scores(score(model=model, adapter=adapters))
    run = run_scores(int8_score(model=model, adapter=adapters))
    bare = run_scores(score(model=model))
    assert rms(run - exact) < 0.3 * rms(bare - exact)


def test_bytes_and_plan(checkpoint, int8_score):
    run = int8_score(model=checkpoint("llama-gqa"), resident_layers=0, micro_batch_tokens=64)
    plan, measured = run.record["plan"], run.record["measured"]
    assert plan["linear"] == "int8"
    assert measured["bytes_read"] == plan["bytes_read"]


def test_run_json_tells_the_effect_on_a_sample(checkpoint, score, int8_score, tmp_path):
    rows = [{**row, "id": f"{row['id']}-{copy}"} for copy in range(3) for row in QUESTIONS]
    many = write_jsonl(tmp_path / "many.jsonl", rows)
    model = checkpoint("llama-gqa")
    run = int8_score(model=model, questions=many, int8_check_questions=5)
    check = json.loads((run.out / "run.json").read_text())["measured"]["int8_check"]
    assert check["questions"] == 5
    assert check["dense_dtype"] == "float32"
    exact = {row.question.id: row for row in score(model=model, questions=many).scores}
    sampled = [run.scores[index] for index in (1, 3, 6, 8, 10)]
    expected = compare_scores(sampled, [exact[row.question.id] for row in sampled])
    assert check["top1_agreement"] == expected.top1_agreement
    assert check["margin_rms_error"] == pytest.approx(expected.margin_rms_error, rel=1e-3)
    assert check["margin_rms_error"] > 0


@pytest.mark.parametrize(("outlier", "is_safe"), [(1.0, True), (3e4, False)])
def test_an_unsafe_job_is_warned_of_before_it_is_run(
    outlier, is_safe, checkpoint, int8_score, tmp_path, capfd, monkeypatch
):
    """A weight of 30,000 in every row takes all codes for itself; to float32 the model is the same."""
    model = shutil.copytree(checkpoint("llama-gqa"), tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("layernorm.weight"):
            weight[3] /= outlier
        elif any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            weight[:, 3] *= outlier
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    warned_before = []
    run_job = score_module._run
    monkeypatch.setattr(
        score_module,
        "_run",
        lambda *job, **flags: warned_before.append(capfd.readouterr().err) or run_job(*job, **flags),
    )
    run = int8_score(model=model, int8_check_questions=5)
    assert run.record["measured"]["int8_check"]["is_safe"] == is_safe
    assert ("int8 changes this model's answers" in warned_before[0]) != is_safe
    assert any("int8 changes" in line for line in run.record["warnings"]["messages"]) != is_safe


def test_the_sample_may_be_left_out(checkpoint, int8_score, score):
    run = int8_score(model=checkpoint("llama-gqa"), int8_check_questions=0)
    assert "int8_check" not in run.record["measured"]
    assert "int8_check" not in score(model=checkpoint("llama-gqa")).record["measured"]


def scores_of(*values: float) -> QuestionScores:
    question = Question(id="q", prompt="", options=("a", "b", "c"))
    return QuestionScores(question=question, scores=np.array(values), probabilities=np.array(values))


def test_agreement_by_hand():
    exact = [scores_of(3, 1, 0), scores_of(0, 2, 1)]
    found = [scores_of(3, 2, 0), scores_of(0, 1, 3)]
    agreement = compare_scores(found, exact)
    assert agreement.questions == 2
    assert agreement.top1_agreement == 0.5
    # Margins 2 and 1 become 1 and -2.
    assert agreement.margin_rms_error == pytest.approx(np.sqrt((1 + 9) / 2))
    assert agreement.margin_rms == pytest.approx(np.sqrt((4 + 1) / 2))


def test_a_sample_spreads_over_the_job():
    assert sample_prompts(list(range(10)), 3) == [1, 5, 8]
    assert sample_prompts(list(range(3)), 5) == [0, 1, 2]
