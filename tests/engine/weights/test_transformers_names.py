"""Wrappers, ties and old layouts: what strata reads is what transformers' own load of the folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader

from ...families import SHAPE, randomize_weights

TINY_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 4,
    "patch_size": 2,
}
TINY_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 16,
    "out_hidden_size": SHAPE["hidden_size"],
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}

Tensors = dict[str, torch.Tensor]
Rename = Callable[[str], str]


def llava(*, tied_above: bool, tied_below: bool) -> hf.PreTrainedConfig:
    text = hf.LlamaConfig(**SHAPE, tie_word_embeddings=tied_below)
    return hf.LlavaConfig(
        vision_config=TINY_CLIP, text_config=text, image_token_index=3, tie_word_embeddings=tied_above
    )


def qwen(*, tied: bool) -> hf.PreTrainedConfig:
    text = {**SHAPE, "rope_parameters": MROPE, "tie_word_embeddings": tied}
    return hf.Qwen2_5_VLConfig(text_config=text, vision_config=TINY_QWEN_VISION, tie_word_embeddings=tied)


def save(folder: Path, config: hf.PreTrainedConfig, change: Callable[[Tensors], Tensors]) -> Path:
    """A random model of a config, with its tensors changed as a checkpoint of some other layout has them."""
    model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomize_weights(model)
    model.save_pretrained(folder)
    changed = change(load_file(folder / "model.safetensors"))
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_as_transformers(folder: Path) -> hf.PreTrainedModel:
    """Every weight of the decoder and the projection; returns what transformers loads."""
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    opened, reader = open_checkpoint(folder), TensorReader()
    expected = dict(model.get_decoder().named_parameters())
    assert len(expected) > 10
    for name, weight in expected.items():
        stored = reader.read(opened.weights[name].parts[0][0].parts["weight"])
        assert torch.equal(stored, weight), name
    assert opened.output_embedding is not None
    projection = opened.require_rows(opened.output_embedding).read(reader)
    assert torch.equal(projection, model.get_output_embeddings().weight)
    return model


def hub_layout(name: str) -> str:
    """Names as checkpoints on the hub have them: the wrapped causal language model's own."""
    if "lm_head" in name:
        return "language_model.lm_head.weight"
    inner = name.removeprefix("model.language_model.").removeprefix("language_model.")
    return f"language_model.model.{inner.removeprefix('model.')}"


def old_names(tensors: Tensors) -> Tensors:
    return {
        hub_layout(name) if "language_model" in name or "lm_head" in name else name: tensor
        for name, tensor in tensors.items()
    }


def new_names(tensors: Tensors) -> Tensors:
    """Names as transformers' own modules have them."""

    def renamed(name: str) -> str:
        name = name.replace("language_model.model.", "model.language_model.")
        return name.replace("language_model.lm_head", "lm_head")

    return {renamed(name): tensor for name, tensor in tensors.items()}


def with_head(tensors: Tensors) -> Tensors:
    """A projection of its own beside an embedding that the config says it is tied to."""
    head = torch.randn(SHAPE["vocab_size"], SHAPE["hidden_size"], generator=torch.Generator().manual_seed(3))
    return {**tensors, "language_model.lm_head.weight": head}


@pytest.mark.parametrize("layout", [old_names, new_names])
@pytest.mark.parametrize("tied", [False, True])
def test_a_wrapper_in_each_layout(layout, tied, tmp_path):
    folder = save(tmp_path, llava(tied_above=tied, tied_below=tied), layout)
    model = assert_as_transformers(folder)
    embedding = model.get_input_embeddings().weight
    assert torch.equal(model.get_output_embeddings().weight, embedding) == tied


@pytest.mark.parametrize(("above", "below"), [(True, False), (False, True), (True, True)])
def test_tie_flags_at_either_level(above, below, tmp_path):
    folder = save(tmp_path, llava(tied_above=above, tied_below=below), old_names)
    model = assert_as_transformers(folder)
    same = torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    assert open_checkpoint(folder).is_tied == same


def test_a_stored_head_beside_a_tie_is_the_head(tmp_path):
    folder = save(
        tmp_path, llava(tied_above=True, tied_below=True), lambda found: with_head(old_names(found))
    )
    model = assert_as_transformers(folder)
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_a_tied_model_that_stores_only_the_head(tmp_path):
    config = hf.LlamaConfig(**SHAPE, tie_word_embeddings=True)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize_weights(model)
    model.save_pretrained(tmp_path)
    # Copies: safetensors 0.7 hands out the mapped file, which is written over.
    tensors = {name: tensor.clone() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(loaded.get_input_embeddings().weight, tensors["lm_head.weight"])
    opened = open_checkpoint(tmp_path)
    assert opened.output_embedding == "embed_tokens.weight"
    read = opened.require_rows("embed_tokens.weight").read(TensorReader())
    assert torch.equal(read, tensors["lm_head.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_a_config_that_is_flat(tied, tmp_path):
    folder = save(tmp_path, qwen(tied=tied), lambda found: found)
    content = json.loads((folder / "config.json").read_text())
    flat = {**content.pop("text_config"), **content, "rope_scaling": {"type": "mrope", **MROPE}}
    for key in ("model_type", "architectures", "vision_config"):
        flat[key] = content[key]
    for key in ("rope_parameters", "layer_types"):
        flat.pop(key, None)
    (folder / "config.json").write_text(json.dumps(flat))
    assert_as_transformers(folder)


def test_tensors_that_transformers_has_no_place_for_are_named(checkpoint, tmp_path):
    whole = checkpoint("llama-gqa")
    tensors = load_file(whole / "model.safetensors")
    spare = torch.zeros(SHAPE["hidden_size"])
    tensors["model.layers.0.self_attn.q_proj.bias"] = spare
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = spare.clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    # Tables that every model computes anew are in many old files and mean nothing.
    assert open_checkpoint(tmp_path).unused == ("model.layers.0.self_attn.q_proj.bias",)
    assert open_checkpoint(whole).unused == ()


def test_no_language_model_is_refused_by_name(tmp_path):
    hf.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the weights hold no layers"):
        open_checkpoint(tmp_path)
