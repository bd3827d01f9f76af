"""Families that strata does not run, refused before any work; mistakes of ours are not put on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from strata.engine.model import rehearsal
from strata.engine.model.families import LENGTH_DEPENDENT_ROPE, refuse_unsupported, rope_type
from strata.engine.model.rehearsal import build_rehearsed
from strata.engine.types import InputError

from ...families import CONFIGS, SHAPE

# Attention with a latent space, whose values are narrower than its keys.
LATENT = {
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "num_key_value_heads": 4,
}

UNSUPPORTED = {
    "use_bidirectional_attention": True,
    "attention_chunk_size": 8192,
    "alibi": True,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_settings_that_would_be_silently_wrong_are_refused(name):
    config = hf.LlamaConfig(**SHAPE)
    setattr(config, name, UNSUPPORTED[name])
    message = f"^model type 'llama': {name}={UNSUPPORTED[name]} is not supported$"
    with pytest.raises(InputError, match=message):
        build_rehearsed(config, torch.float32)


def test_neutral_values_of_the_same_settings_pass():
    config = hf.LlamaConfig(**SHAPE)
    for name, setting in {"use_bidirectional_attention": False, "alibi": False}.items():
        setattr(config, name, setting)
    assert len(build_rehearsed(config, torch.float32).layers) == config.num_hidden_layers


@pytest.mark.parametrize("kind", ["chunked_attention", "linear_attention"])
def test_layers_of_another_kind_are_refused(kind):
    config = hf.LlamaConfig(**SHAPE)
    config.layer_types = ["full_attention", kind, "sliding_attention"]
    with pytest.raises(InputError, match=f"^model type 'llama': layers of type {kind} are not supported$"):
        refuse_unsupported(config)


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (lambda: hf.GPT2Config(n_layer=1), "layers"),
        (lambda: hf.BertConfig(num_hidden_layers=1), "layers"),
        (lambda: hf.T5Config(num_layers=1), "layers"),
        (lambda: hf.GPTNeoXConfig(num_hidden_layers=1), "embed_tokens"),
        (lambda: hf.PhiConfig(num_hidden_layers=1, pad_token_id=0), "norm"),
    ],
)
def test_architectures_unlike_llamas_are_refused(config, missing):
    with pytest.raises(InputError, match=f"has no {missing}; expected a decoder like Llama's"):
        build_rehearsed(config(), torch.float32)


def test_a_decoder_without_rotary_embedding_is_refused(monkeypatch):
    def build(config: hf.LlamaConfig, **settings: object) -> nn.Module:
        model = hf.LlamaModel(config)
        del model.rotary_emb
        return model

    monkeypatch.setattr(hf.AutoModel, "from_config", build)
    with pytest.raises(InputError, match="model type 'llama' has no rotary_emb"):
        build_rehearsed(hf.LlamaConfig(**SHAPE), torch.float32)


def test_a_config_that_no_model_goes_with_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^model type '' is not supported: [^\n]+$"):
        build_rehearsed(hf.PreTrainedConfig(), torch.float32)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        # Its layer hands no extra arguments on, so attention would not know what to do; in transformers 5.0
        # it does not even take them.
        (
            lambda: hf.StableLmConfig(**SHAPE),
            "(StableLmAttention is not given the arguments|unexpected keyword argument 'attention_call')",
        ),
        (lambda: hf.DeepseekV3Config(**(SHAPE | LATENT)), "heads of 48 features for keys and 32 for values"),
        (
            lambda: hf.DeepseekV2Config(**(SHAPE | LATENT), num_experts_per_tok=2),
            "gives no tables of cos and sin",
        ),
        (lambda: hf.GptOssConfig(**SHAPE), "attention setting s_aux of GptOssAttention is not supported"),
    ],
    ids=["stablelm", "deepseek-v3", "deepseek-v2", "gpt-oss"],
)
def test_families_that_cannot_run_are_refused_before_any_work(config, reason):
    with pytest.raises(InputError, match=f"^model type '[a-z0-9_]+' is not supported: .*{reason}"):
        build_rehearsed(config(), torch.float32)


MISTAKES = (
    AssertionError,
    AttributeError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def failing(error: type[Exception]) -> Callable[..., None]:
    """Stands for a function of whoever calls it; what is raised in it is raised by its caller's package."""

    def fail(*arguments: object, **settings: object) -> None:
        raise error("oh no")

    return fail


@pytest.fixture
def unrehearsed(monkeypatch) -> None:
    """No family was rehearsed yet."""
    monkeypatch.setattr(rehearsal, "_rehearsed", {})


# Called by strata: by the rehearsal itself, and by the attention that layers call.
@pytest.mark.parametrize(
    "called", ["decoder.Decoder.run_layer", "decoder.Decoder.prepare_rope", "attention.choose_backend"]
)
@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("error", MISTAKES)
def test_a_mistake_of_ours_is_not_put_on_the_family(error, called, monkeypatch):
    monkeypatch.setattr(f"strata.engine.model.{called}", failing(error))
    with pytest.raises(error, match="oh no") as raised:
        build_rehearsed(CONFIGS["llama-gqa"](), torch.float32)
    assert not isinstance(raised.value, InputError)


# Called by transformers: by its decoder layer, and by its model when that is built.
@pytest.mark.parametrize("called", ["LlamaAttention.forward", "LlamaRMSNorm.__init__"])
@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("error", MISTAKES)
def test_what_a_familys_code_raises_is_told_of_the_family(error, called, monkeypatch):
    monkeypatch.setattr(f"transformers.models.llama.modeling_llama.{called}", failing(error))
    with pytest.raises(InputError, match=r"^model type 'llama' is not supported: .*oh no"):
        build_rehearsed(CONFIGS["llama-gqa"](), torch.float32)


def test_building_leaves_no_trace_of_the_rehearsal():
    decoder = build_rehearsed(CONFIGS["llama-gqa"](), torch.float32)
    assert decoder.rope_tables == {}
    assert isinstance(decoder.layers[0].mlp, LlamaMLP)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (lambda: hf.LlamaConfig(**SHAPE), "default"),
        (lambda: hf.GPT2Config(), "default"),
        (lambda: hf.LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
    ],
)
def test_rope_type(config, kind):
    assert rope_type(config()) == kind


def test_rope_type_of_one_kind_of_layer_is_seen():
    config = CONFIGS["gemma3"]()
    config.rope_parameters["full_attention"] |= {"rope_type": "dynamic", "factor": 2.0}
    assert rope_type(config) in LENGTH_DEPENDENT_ROPE
