"""Moments of linear modules' inputs against transformers' own, and what rounding by them is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.model import open_model
from strata.engine.pack.calibrated import InputMoments
from strata.engine.pack.config import PackConfig
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.questions.question_file import read_questions
from strata.engine.scorer import Scorer
from strata.engine.smoothquant import norm_maxima
from strata.engine.smoothquant.config import CalibrationConfig
from strata.engine.smoothquant.input_moments import MomentsListener, block_inputs
from strata.engine.smoothquant.norm_maxima import calibrate_on_questions
from strata.engine.types import RunWarnings
from strata.kernels.elementwise.plain import PLAIN
from strata.scripts.pack import run_pack


def test_moments_are_those_of_transformers(checkpoint, questions, fixed_rates, tmp_path):
    model = checkpoint("llama-gqa")
    found = calibrate_on_questions(model, CalibrationConfig(questions=questions), tmp_path)
    by_linear = {name: moments for moments in found.inputs for name in moments.linears}
    oracle = hf.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    path = "layers.0.mlp.down_proj"
    expected = torch.zeros(())
    seen: list[torch.Tensor] = []
    oracle.model.get_submodule(path).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0][0])
    )
    with Scorer.open([Member(model=model, head="loglik")], MachineSettings(devices="cpu")) as scorer:
        prompts = scorer.render(read_questions(questions, warnings=RunWarnings()))
    computed: set[tuple[int, ...]] = set()
    for prompt in prompts:
        for branch in prompt.branches:
            ids = branch.token_ids[: branch.targets[-1].position]
            with torch.no_grad():
                oracle(torch.as_tensor(ids)[None].long())
            for position in range(len(ids)):
                key = tuple(ids[: position + 1].tolist())
                if key not in computed:
                    computed.add(key)
                    expected = expected + seen[-1][position, :, None] * seen[-1][position]
    (block,) = by_linear[path].blocks
    torch.testing.assert_close(block, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    attention = [f"layers.0.self_attn.{name}_proj" for name in "qkv"]
    assert by_linear[attention[0]].linears == tuple(attention)
    assert by_linear["layers.0.mlp.gate_proj"] is by_linear["layers.0.mlp.up_proj"]


def test_fused_modules_are_heard_as_all_others(checkpoint, questions, fixed_rates, tmp_path, monkeypatch):
    """Where norms, rotations and gates are fused (AMX, Triton), the same is found as where they are not."""
    model, asked = checkpoint("llama-gqa"), CalibrationConfig(questions=questions)
    expected = calibrate_on_questions(model, asked, tmp_path)
    monkeypatch.setattr(open_model, "choose_functions", lambda device, dtype: PLAIN)
    with Scorer.open([Member(model=model)], MachineSettings(devices="cpu", dtype="float32")) as scorer:
        assert scorer._opened.model.decoders[0].fused
    found = calibrate_on_questions(model, asked, tmp_path)
    assert [one.linears for one in found.inputs] == [one.linears for one in expected.inputs]
    assert [(one.norm, one.linears) for one in found.norms] == [
        (one.norm, one.linears) for one in expected.norms
    ]
    for one, other in zip(found.inputs, expected.inputs, strict=True):
        torch.testing.assert_close(one.blocks, other.blocks, rtol=1e-4, atol=1e-4)


def test_blocks_are_the_diagonal_of_whole_moments():
    linear = nn.Linear(10, 3)
    x = torch.randn(1, 20, 10)
    found = {}
    for block in (4, 10):
        ear = MomentsListener(path="layers.0", block=block)
        module = nn.ModuleDict({"proj": linear})
        ear.listen(module)
        for part in x.split(7, dim=1):
            linear(part)
        (found[block],) = ear.found()
        linear._forward_pre_hooks.clear()
    whole = x[0].T @ x[0]
    torch.testing.assert_close(found[10].blocks[0], whole)
    assert found[4].blocks.shape == (3, 4, 4)
    torch.testing.assert_close(found[4].blocks[1], whole[4:8, 4:8])
    torch.testing.assert_close(found[4].blocks[2, :2, :2], whole[8:, 8:])
    assert not found[4].blocks[2, 2:].any()


def test_moments_follow_inputs_that_are_divided():
    x, factors = torch.randn(20, 10), torch.arange(1.0, 11.0)
    blocks = torch.nn.functional.pad(x, (0, 2)).view(20, 3, 4).permute(1, 2, 0)
    moments = InputMoments(linears=("a",), num_inputs=10, blocks=blocks @ blocks.transpose(1, 2))
    divided = torch.nn.functional.pad(x / factors, (0, 2)).view(20, 3, 4).permute(1, 2, 0)
    torch.testing.assert_close(moments.divided_by(factors).blocks, divided @ divided.transpose(1, 2))


@pytest.mark.parametrize(("max_bytes", "block"), [(1 << 30, 600), (4 * 128 * 700, 128), (1, 32)])
def test_blocks_shrink_until_all_moments_fit(max_bytes, block):
    layers = [nn.ModuleList([nn.Linear(100, 8), nn.Linear(600, 8)])]
    assert block_inputs(layers, max_bytes) == block


@pytest.mark.parametrize("block", [None, 16])
def test_int8_is_closer_with_calibrated_rounding(
    block, checkpoint, questions, fixed_rates, tmp_path, monkeypatch
):
    """On linear layers' products, whose inputs go together in a trained model and hardly in a random one."""
    model = checkpoint("llama-gqa")
    out = {name: tmp_path / name for name in ("plain", "calibrated")}
    pack_checkpoint(PackConfig(model=model, format="int8", out=out["plain"]))
    with monkeypatch.context() as patch:
        if block is not None:
            patch.setattr(norm_maxima, "block_inputs", lambda layers: block)
        run_pack(PackConfig(model=model, format="int8", out=out["calibrated"], calibrate=questions))
    found = calibrate_on_questions(model, CalibrationConfig(questions=questions), tmp_path)
    moments = {name: one.blocks[0] for one in found.inputs for name in one.linears}
    exact = load_file(model / "model.safetensors")
    errors: dict[str, list[float]] = {name: [] for name in out}
    for kind, folder in out.items():
        stored = load_file(folder / "model.safetensors")
        for name, whole in moments.items():
            key = f"model.{name}.weight"
            error = stored[key].float() * stored[f"{key}_scale"] - exact[key].float()
            errors[kind].append(float(((error @ whole) * error).sum()))
    assert all(np.array(errors["calibrated"]) < np.array(errors["plain"]))
    assert not any(torch.equal(stored[name], exact[name]) for name in exact if "_proj.weight" in name)
    norms = [name for name in exact if name.endswith("norm.weight")]
    assert all(torch.equal(stored[name], exact[name]) for name in norms), "nothing is smoothed unasked"
