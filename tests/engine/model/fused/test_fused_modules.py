"""Modules that compute by fused functions: known by numbers, their family's output, refused if it differs.

Independent check: the forwards of transformers' own modules, and the rehearsal against its models.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

from strata.engine.model.decoder import build_decoder
from strata.engine.model.fused.modules import fuse_modules
from strata.engine.model.fused.patterns import recognize
from strata.engine.model.int8_linears import Int8Linear
from strata.engine.model.open_model import Computing, OpenModel, open_model
from strata.engine.model.rehearsal import rehearse, rehearse_fused
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader
from strata.kernels.elementwise import registry
from strata.kernels.elementwise.operators import TRITON
from strata.kernels.elementwise.plain import PLAIN

from ....families import CONFIGS, FAMILIES, randomize_weights

CPU = torch.device("cpu")
EXPERTS_STAY = {"mixtral"}


@pytest.fixture(autouse=True)
def _forget_rehearsals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strata.engine.model.rehearsal._rehearsed", {})


def fused_kinds(names: frozenset[str]) -> set[str]:
    return {kind for kind in ("RMSNorm", "MLP", "Attention") for name in names if name.endswith(kind)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_fused_and_still_what_transformers_computes(family: str) -> None:
    """Plain torch stands for the kernels; `rehearse` compares every layer with transformers'."""
    decoder = build_decoder(CONFIGS[family]())
    assert rehearse_fused(decoder, TRITON, CPU, torch.float32) is None
    expected = {"RMSNorm", "Attention"} | (set() if family in EXPERTS_STAY else {"MLP"})
    assert fused_kinds(decoder.fused) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "gemma3", "phi3", "olmo2"])
def test_every_fused_module_gives_the_bits_of_its_own_forward(family: str, dtype: torch.dtype) -> None:
    own = hf.AutoModel.from_config(CONFIGS[family](), dtype=torch.float32)
    randomize_weights(own)
    own = own.to(dtype).eval()
    hidden = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = own(ids, use_cache=False).last_hidden_state
        parts = [module(hidden) for module in (own.norm, own.layers[0].mlp)]
        assert fused_kinds(fuse_modules([own], PLAIN, CPU, dtype)) == {"RMSNorm", "MLP", "Attention"}
        assert torch.equal(own(ids, use_cache=False).last_hidden_state, expected)
        for module, part in zip((own.norm, own.layers[0].mlp), parts, strict=True):
            assert torch.equal(module(hidden), part)


class _NormByMaximum(hf.models.llama.modeling_llama.LlamaRMSNorm):
    """Has the name and the form of one that is known, and computes something else."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        largest = hidden_states.abs().amax(-1, keepdim=True)
        return self.weight * hidden_states / (largest + self.variance_epsilon)


class _GateTimesTwo(hf.models.llama.modeling_llama.LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_name_alone_fuses_nothing() -> None:
    config = CONFIGS["llama-gqa"]()
    assert recognize(_NormByMaximum(32)) is None
    assert recognize(_GateTimesTwo(config)) is None
    assert recognize(nn.LayerNorm(32, bias=False)) is None
    assert recognize(hf.models.llama.modeling_llama.LlamaRMSNorm(32, eps=1e-5)) is not None


def test_the_eps_is_the_modules() -> None:
    norm = hf.models.llama.modeling_llama.LlamaRMSNorm(32, eps=0.5)
    norm.unrelated = 1e-6
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    expected = norm(x)
    assert fuse_modules([norm], PLAIN, CPU, torch.float32) == {"LlamaRMSNorm"}
    assert torch.equal(norm(x), expected)


def test_a_rotation_of_pairs_of_neighbours_stays() -> None:
    """Cohere turns feature 2 i with 2 i + 1."""
    config = hf.CohereConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1, vocab_size=64
    )
    assert recognize(hf.models.cohere.modeling_cohere.CohereAttention(config, 0)) is None


def test_functions_that_compute_something_else_on_the_device_are_not_used() -> None:
    """As if a compiler had erred: the modules are known, the kernel is wrong."""
    wrong = dataclasses.replace(PLAIN, rms_norm=lambda x, weight, settings: 1.01 * x)
    layer = build_decoder(CONFIGS["llama-gqa"]()).layers[0]
    assert fused_kinds(fuse_modules([layer], wrong, CPU, torch.float32)) == {"MLP", "Attention"}


def test_functions_that_are_missing_stay_the_familys() -> None:
    partial = dataclasses.replace(PLAIN, name="partial", rotate=None, rms_norm=None)
    layer = build_decoder(CONFIGS["llama-gqa"]()).layers[0]
    assert fused_kinds(fuse_modules([layer], partial, CPU, torch.float32)) == {"MLP"}


def test_a_rehearsal_that_fails_with_fused_functions_leaves_the_family_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = dataclasses.replace(PLAIN, name="wrong", rms_norm=lambda x, weight, settings: 1.01 * x)
    monkeypatch.setattr("strata.engine.model.fused.modules._is_close", lambda own, fused: True)
    decoder = build_decoder(CONFIGS["llama-gqa"]())
    reason = rehearse_fused(decoder, wrong, CPU, torch.float32)
    assert reason is not None
    assert "with fused functions (wrong)" in reason
    assert not decoder.fused
    rehearse(decoder)


def test_nobody_elses_rotation_changes() -> None:
    module = hf.models.llama.modeling_llama
    own, forward = module.apply_rotary_pos_emb, module.LlamaAttention.forward
    build_decoder(CONFIGS["llama-gqa"]()).fuse(PLAIN, CPU, torch.float32)
    assert module.apply_rotary_pos_emb is own
    assert module.LlamaAttention.forward is forward


@pytest.mark.parametrize(("int8", "kind"), [(False, nn.Linear), (True, Int8Linear)])
def test_another_kind_of_device_registers_its_own(checkpoint, monkeypatch, int8, kind) -> None:
    """`gated` is given the projections that are there when it is called."""
    given: list[type] = []

    def gated(x, gate, up, activation):
        given.extend((type(gate), type(up)))
        return x

    known = dataclasses.replace(PLAIN, name="ours", refusal=lambda device, dtype: None)
    monkeypatch.setattr(registry, "FUNCTIONS", [known, *registry.FUNCTIONS])
    computing = Computing(devices=("cpu",), dtype=torch.float32, int8=int8)
    opened = open_checkpoint(checkpoint("llama-gqa"))
    (decoder,) = open_model(opened, (), computing, TensorReader()).decoders
    assert fused_kinds(decoder.fused) == {"RMSNorm", "MLP", "Attention"}
    candidate = recognize(build_decoder(opened.config).layers[0].mlp)
    assert candidate is not None
    mlp = decoder.layers[0].mlp
    candidate.install(mlp, dataclasses.replace(known, gated=gated))
    mlp.down_proj = nn.Identity()
    mlp(torch.zeros(1, 5, 32))
    assert given == [kind, kind]


def test_where_all_functions_refuse_nothing_is_fused_and_the_reason_is_told(checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(registry, "FUNCTIONS", [TRITON])
    (decoder,) = open_on_cpu(checkpoint("llama-gqa")).decoders
    assert decoder.fused == frozenset()
    assert decoder.unfused_because == "there are no Triton kernels for cpu"
    assert "forward" not in vars(decoder.layers[0].mlp)


def test_on_cpus_a_decoder_is_fused(checkpoint) -> None:
    (decoder,) = open_on_cpu(checkpoint("llama-gqa")).decoders
    assert decoder.fused == {"LlamaAttention", "LlamaMLP", "LlamaRMSNorm"}
    assert decoder.unfused_because is None


def open_on_cpu(folder: Path) -> OpenModel:
    computing = Computing(devices=("cpu",), dtype=torch.float32)
    return open_model(open_checkpoint(folder), (), computing, TensorReader())
