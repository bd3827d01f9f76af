"""The rehearsal refuses what differs from transformers, of a family or of ours, and lets pass what agrees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf

from strata.engine.model import rehearsal
from strata.engine.model.decoder import Decoder, build_decoder
from strata.engine.model.final_logits import FinalLogits
from strata.engine.model.rehearsal import build_rehearsed, rehearse
from strata.engine.model.small_config import first_of_every_kind, layer_kinds, shrink_config
from strata.engine.types import InputError

from ...families import CONFIGS, SHAPE

EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "head_dim": 8,
}
AGREE: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "granite": lambda: hf.GraniteConfig(
        **SHAPE,
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.2,
        attention_multiplier=0.1,
    ),
    "cohere": lambda: hf.CohereConfig(**SHAPE, logit_scale=0.0625),
    # Routers with a correction that is no parameter, and layers of two kinds.
    "glm4_moe": lambda: hf.Glm4MoeConfig(**SHAPE, **EXPERTS),
    # Every fourth layer without rotary embedding.
    "smollm3": lambda: hf.SmolLM3Config(**{**SHAPE, "num_hidden_layers": 5}),
    "llama, wide": lambda: hf.LlamaConfig(
        **{**SHAPE, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    ),
}
DIFFER: dict[str, tuple[Callable[[], hf.PreTrainedConfig], str]] = {
    "mask of its own": (lambda: hf.DogeConfig(**SHAPE), "layer 0 differs from transformers' own by"),
    # In transformers 5.0 it has attention modules of its own and takes no other.
    "two calls a layer": (
        lambda: hf.DiffLlamaConfig(**SHAPE),
        "(layer 0 attends 2 times|KeyError: 'strata_prefix')",
    ),
    "normed embedding": (lambda: hf.NanoChatConfig(**SHAPE), "what enters layer 0 differs"),
    "window by itself": (
        lambda: hf.PhimoeConfig(**SHAPE, sliding_window=16, num_local_experts=4),
        # In transformers 5.0 its layers cannot be built from its own config.
        "(differs from transformers' own by|no attribute 'layer_types')",
    ),
}


@pytest.fixture(autouse=True)
def unrehearsed(monkeypatch) -> None:
    """No family was rehearsed yet."""
    monkeypatch.setattr(rehearsal, "_rehearsed", {})


@pytest.mark.parametrize("family", AGREE)
def test_families_that_agree_pass(family):
    config = AGREE[family]()
    assert len(build_rehearsed(config).layers) == config.num_hidden_layers


@pytest.mark.parametrize("family", DIFFER)
def test_families_that_differ_are_refused_by_name_and_place(family):
    config, told = DIFFER[family]
    with pytest.raises(InputError, match=f"^model type '[a-z0-9_]+' is not supported: .*{told}"):
        build_rehearsed(config())


def run_without_window(original):
    def run(self: Decoder, layer: int, *arguments):
        kind, self._layer_type = self._layer_type, lambda layer: "full_attention"
        try:
            return original(self, layer, *arguments)
        finally:
            self._layer_type = kind

    return run


def run_squeezed(original):
    return lambda self, layer, hidden, positions, call: original(
        self, layer, hidden, positions // (1 + layer), call
    )


def embed_twice(original):
    return lambda self, rows: 2 * original(self, rows)


def keys_of_nothing(original):
    return lambda self, *arguments: torch.zeros_like(original(self, *arguments))


OURS = {
    "a window forgotten": ("gemma3", "run_layer", run_without_window, "layer 0 differs"),
    "positions squeezed": ("llama-gqa", "run_layer", run_squeezed, "layer 1 differs"),
    "an embedding scaled": ("llama-gqa", "embed_rows", embed_twice, "what enters layer 0 differs"),
    "keys lost": ("llama-gqa", "run_layer_keys", keys_of_nothing, "the keys and values of layer 0 differs"),
}


@pytest.mark.parametrize("mistake", OURS)
def test_a_mistake_of_ours_is_found(mistake, monkeypatch):
    family, method, change, told = OURS[mistake]
    decoder = build_decoder(CONFIGS[family]())
    monkeypatch.setattr(Decoder, method, change(getattr(Decoder, method)))
    with pytest.raises(InputError, match=told):
        rehearse(decoder)


def test_weights_that_would_not_be_loaded_are_found(monkeypatch):
    decoder = build_decoder(AGREE["glm4_moe"]())
    assert any(decoder.buffer_names(layer) for layer in range(len(decoder.layers)))
    whole = Decoder.layer_shapes

    def without_buffers(self: Decoder, layer: int) -> dict[str, tuple[int, ...]]:
        return {
            name: shape for name, shape in whole(self, layer).items() if name not in self.buffer_names(layer)
        }

    monkeypatch.setattr(Decoder, "layer_shapes", without_buffers)
    with pytest.raises(InputError, match="layer 1 differs"):
        rehearse(decoder)


def test_logits_that_are_left_unscaled_are_found(monkeypatch):
    monkeypatch.setattr(rehearsal, "final_logits", lambda config: FinalLogits())
    with pytest.raises(InputError, match="the logits differs"):
        rehearse(build_decoder(AGREE["granite"]()))


def test_a_config_is_rehearsed_once(monkeypatch):
    config = CONFIGS["llama-gqa"]()
    rehearse(build_decoder(config))
    monkeypatch.setattr(rehearsal, "_compare", lambda theirs: pytest.fail("rehearsed again"))
    rehearse(build_decoder(CONFIGS["llama-gqa"]()))


@pytest.mark.parametrize(
    ("config", "kinds", "kept"),
    [
        (CONFIGS["gemma3"], [0, 1, 0], 2),
        (CONFIGS["llama-gqa"], [0, 0, 0], 2),
        (AGREE["glm4_moe"], [0, 1, 1], 2),
        (AGREE["smollm3"], [0, 0, 0, 3, 0], 4),
    ],
)
def test_one_layer_of_every_kind_is_kept(config, kinds, kept):
    decoder = build_decoder(config())
    found = layer_kinds(decoder.layers, getattr(decoder.config, "layer_types", None))
    assert [found.index(kind) for kind in found] == kinds
    assert first_of_every_kind(found) == kept


def test_a_small_config_keeps_what_a_layer_does():
    config = hf.Gemma3TextConfig(num_hidden_layers=12, sliding_window=1024)
    small = shrink_config(config, 6, is_narrow=True)
    assert small.layer_types == config.layer_types[:6]
    assert (small.head_dim, small.sliding_window, small.num_hidden_layers) == (config.head_dim, 4, 6)
    assert small.query_pre_attn_scalar == config.query_pre_attn_scalar
    assert config.num_hidden_layers == 12
