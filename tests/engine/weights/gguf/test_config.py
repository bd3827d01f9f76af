"""Configs from GGUF metadata: transformers' own, what its loader drops, and what cannot be honoured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint, open_checkpoint
from strata.engine.weights.formats.registry import ignored_settings

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from ....tiny_gguf import CONFIGS, build_model, write_tiny_gguf  # noqa: E402

NOT_COMPARED = {"_name_or_path", "architectures", "dtype", "transformers_version"}
# transformers' loader leaves these at the default of one checkpoint, whatever the file says.
DROPPED = {
    "llama-biases": {"attention_bias", "mlp_bias"},
    "phi3": {"partial_rotary_factor"},
    "qwen2moe": {"moe_intermediate_size", "shared_expert_intermediate_size"},
    "qwen3": {"head_dim"},
    "qwen3moe": {"moe_intermediate_size"},
    "starcoder2": {"norm_epsilon"},
}


def opened(tmp_path: Path, **settings: object) -> Checkpoint:
    return open_checkpoint(write_tiny_gguf(tmp_path / "model.gguf", **settings))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_config_is_transformers_own(tmp_path: Path, family: str) -> None:
    ours = opened(tmp_path, family=family).config.to_dict()
    theirs = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf").to_dict()
    skipped = NOT_COMPARED | DROPPED.get(family, set())
    assert {key: value for key, value in ours.items() if key not in skipped} == {
        key: value for key, value in theirs.items() if key not in skipped
    }


@pytest.mark.parametrize("family", CONFIGS)
def test_a_config_is_that_of_the_model_in_the_file(tmp_path: Path, family: str) -> None:
    checkpoint, source = opened(tmp_path, family=family), build_model(family).config.to_dict()
    assert checkpoint.quantization["notes"] == ()
    for key, value in checkpoint.config.to_dict().items():
        if key not in NOT_COMPARED | {"pad_token_id", "unk_token_id", "partial_rotary_factor"}:
            expected = pytest.approx(source[key]) if isinstance(value, float) else source.get(key)
            assert value == expected, key


def inverse_frequencies(checkpoint: Checkpoint) -> torch.Tensor:
    model = transformers.AutoModel.from_config(checkpoint.config)
    return model.rotary_emb.inv_freq


def test_linear_rotary_scaling_is_honoured(tmp_path: Path) -> None:
    plain = inverse_frequencies(opened(tmp_path))
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0}
    scaled = opened(tmp_path, metadata=metadata)
    torch.testing.assert_close(inverse_frequencies(scaled), plain / 8)
    assert scaled.quantization["notes"] == ()


def test_gemma3_scales_its_full_layers_only(tmp_path: Path) -> None:
    metadata = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    rope = opened(tmp_path, family="gemma3", metadata=metadata).config.rope_parameters
    assert (rope["full_attention"]["rope_type"], rope["full_attention"]["factor"]) == ("linear", 8.0)
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}


def test_yarn_is_honoured(tmp_path: Path) -> None:
    metadata = {
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 1024,
    }
    rope = opened(tmp_path, family="qwen2", metadata=metadata).config.rope_parameters
    assert rope["rope_type"] == "yarn"
    assert (rope["factor"], rope["original_max_position_embeddings"]) == (4.0, 1024)


def test_factors_of_frequencies_are_honoured(tmp_path: Path) -> None:
    """Llama 3.1 keeps its rotary scaling as a tensor, by which llama.cpp divides the frequencies."""
    factors = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    plain = inverse_frequencies(opened(tmp_path))
    scaled = opened(tmp_path, tensors={"rope_freqs.weight": factors})
    torch.testing.assert_close(inverse_frequencies(scaled), plain / torch.from_numpy(factors))


def test_phi3s_factors_are_honoured(tmp_path: Path) -> None:
    """Phi 3 has a set of factors for prompts within its first window, and one beyond."""
    short, long = (np.linspace(1, end, 4, dtype=np.float32) for end in (2, 30))
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    metadata = {
        "phi3.rope.scaling.original_context_length": 1024,
        "phi3.rope.scaling.attn_factor": 1.25,
    }
    plain = inverse_frequencies(opened(tmp_path, family="phi3"))
    config = opened(tmp_path, family="phi3", tensors=tensors, metadata=metadata).config
    rope = config.rope_parameters
    assert rope["original_max_position_embeddings"] == config.original_max_position_embeddings == 1024
    assert rope["attention_factor"] == 1.25
    assert rope["long_factor"] == long.tolist()
    scaled = inverse_frequencies(open_checkpoint(tmp_path / "model.gguf"))
    torch.testing.assert_close(scaled, plain / torch.from_numpy(short))


def test_the_scale_of_gemmas_queries(tmp_path: Path) -> None:
    assert opened(tmp_path, family="gemma2").config.query_pre_attn_scalar == 256


REFUSED = {
    **{
        # transformers' mapping knows the last three; it makes no Mistral of one, and strata runs no other.
        name: (
            {"general.architecture": name},
            rf"architecture is '{name}'; expected one of gemma2, gemma3, llama",
        )
        for name in ("rwkv7", "mistral", "nemotron", "stablelm")
    },
    "a scaling": ({"llama.rope.scaling.type": "warp"}, r"llama\.rope\.scaling\.type is 'warp'"),
    "blocks": ({"llama.block_count": 1_000_000}, r"llama\.block_count is 1000000; expected 3, the blocks"),
    "no heads": ({"llama.attention.head_count": 0}, r"llama\.attention\.head_count is 0"),
    "heads as text": ({"llama.attention.head_count": "4"}, r"head_count is '4'; expected a number"),
    "a width a layer": ({"llama.feed_forward_length": [64, 64, 32]}, r"is \[64, 64, 32\]; expected a number"),
    "a head's width": ({"llama.attention.key_length": 16}, r"key_length is 16; expected 8"),
    "part of a head": ({"qwen2.rope.dimension_count": 4}, r"rope\.dimension_count is 4; expected 8"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_metadata_that_cannot_be_honoured_are_one_line(tmp_path: Path, kind: str) -> None:
    metadata, expected = REFUSED[kind]
    family = "qwen2" if any("qwen2" in key for key in metadata) else "llama"
    if "general.architecture" in metadata:
        path = write_tiny_gguf(tmp_path / "model.gguf")
        name = metadata["general.architecture"].encode()
        written = len(name).to_bytes(8, "little") + name
        path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", written, 1) + bytes(32))
    else:
        path = write_tiny_gguf(tmp_path / "model.gguf", family=family, metadata=metadata)
    with pytest.raises(InputError, match=expected) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_what_nobody_reads_is_told(tmp_path: Path) -> None:
    metadata = {"llama.attention.scale": 0.5, "tokenizer.ggml.pre": "martian"}
    lines = ignored_settings(opened(tmp_path, metadata=metadata).quantization)
    assert len(lines) == 2
    assert "llama.attention.scale is not honoured" in lines[0]
    assert "tokenizer.ggml.pre is 'martian': transformers cuts words as GPT-2 does" in lines[1]
