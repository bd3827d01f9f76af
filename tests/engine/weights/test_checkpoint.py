"""The checkpoint reader against transformers' own modules, and the bytes that it takes."""

import os
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.safetensors_file import read_header
from strata.engine.weights.tensor_reader import TensorReader

from ...families import CONFIGS, FAMILIES, randomize_weights
from .changed_copies import QUERY, convert, copy_changed, make_loader


def read_all(path: Path) -> dict[str, torch.Tensor]:
    """Every weight of the base model by transformers' name, as the engine reads it."""
    opened, reader = open_checkpoint(path), TensorReader()
    loader = make_loader(opened, reader=reader)
    weights = {
        name: reader.read(source.parts[0][0].parts["weight"])
        for name, source in opened.weights.items()
        if not name.startswith(("layers.", "lm_head"))
    }
    for layer in range(opened.num_layers):
        weights |= {f"layers.{layer}.{name}": weight for name, weight in loader.load(layer).items()}
    return weights


def assert_read_as_transformers_does(path: Path) -> None:
    expected = dict(hf.AutoModel.from_pretrained(path, dtype=torch.float32).named_parameters())
    actual = read_all(path)
    assert set(actual) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(actual[name], weight), name


@pytest.mark.parametrize("kind", ["causal_lm", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_the_one_that_transformers_loads(family, kind, checkpoint):
    path = checkpoint(family, kind)
    assert (kind == "sharded") == (path / "model.safetensors.index.json").is_file()
    assert_read_as_transformers_does(path)


@pytest.mark.parametrize("family", ["llama-gqa", "mixtral", "gemma3"])
def test_a_base_model_has_no_prefix_in_its_names(family, tmp_path):
    model = hf.AutoModel.from_config(CONFIGS[family](), dtype=torch.float32)
    randomize_weights(model)
    model.save_pretrained(tmp_path)
    assert not any(name.startswith("model.") for name in load_file(tmp_path / "model.safetensors"))
    assert_read_as_transformers_does(tmp_path)
    assert open_checkpoint(tmp_path).output_embedding is None or CONFIGS[family]().tie_word_embeddings


def test_experts_saved_apart_are_merged(checkpoint):
    path = checkpoint("mixtral")
    stored = load_file(path / "model.safetensors")
    prefix = "model.layers.1.block_sparse_moe.experts."
    gate = torch.stack([stored[f"{prefix}{expert}.w1.weight"] for expert in range(4)])
    up = torch.stack([stored[f"{prefix}{expert}.w3.weight"] for expert in range(4)])
    down = torch.stack([stored[f"{prefix}{expert}.w2.weight"] for expert in range(4)])
    weights = make_loader(open_checkpoint(path)).load(1)
    assert torch.equal(weights["mlp.experts.gate_up_proj"], torch.cat((gate, up), dim=1))
    assert torch.equal(weights["mlp.experts.down_proj"], down)


def test_tied_embeddings(checkpoint):
    tied, untied = open_checkpoint(checkpoint("llama-tied")), open_checkpoint(checkpoint("llama-gqa"))
    assert tied.output_embedding == "embed_tokens.weight"
    assert untied.output_embedding == "lm_head.weight"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_stored_and_computed_dtypes(stored, dtype, checkpoint, tmp_path):
    path = copy_changed(checkpoint("llama-gqa"), tmp_path, lambda tensors: convert(tensors, stored))
    expected = load_file(path / "model.safetensors")[QUERY].to(dtype)
    opened = open_checkpoint(path)
    loader = make_loader(opened, dtype)
    buffer = torch.full((loader.buffer_bytes(1),), 255, dtype=torch.uint8)
    weights = loader.decode(1, loader.read(1, buffer))
    assert opened.stored_dtype == stored
    assert all(weight.dtype == dtype for weight in weights.values())
    assert torch.equal(weights["self_attn.q_proj.weight"], expected)
    # What is stored as it is computed costs no memory beyond the buffer.
    first, last = buffer.data_ptr(), buffer.data_ptr() + len(buffer)
    assert (loader.converted_bytes(1) == 0) == (stored == dtype)
    assert all((first <= weight.data_ptr() < last) == (stored == dtype) for weight in weights.values())


def test_bytes_of_a_layer_are_counted_as_read(checkpoint):
    for family in ("llama-gqa", "mixtral"):
        opened, reader = open_checkpoint(checkpoint(family)), TensorReader()
        loader = make_loader(opened, reader=reader)
        loader.load(2)
        stored = load_file(checkpoint(family) / "model.safetensors")
        expected = sum(tensor.nbytes for name, tensor in stored.items() if "layers.2." in name)
        assert reader.num_bytes_read == loader.stored_bytes(2) == expected
        assert opened.num_bytes == sum(tensor.nbytes for tensor in stored.values())


def test_rows_of_a_matrix(checkpoint):
    file = checkpoint("llama-gqa") / "model.safetensors"
    expected = load_file(file)["lm_head.weight"]
    assert torch.equal(TensorReader().read_rows(read_header(file)["lm_head.weight"], 5, 9), expected[5:9])


def test_reads_that_the_system_cuts_short_are_gone_on_with(checkpoint, monkeypatch):
    file, preadv = checkpoint("llama-gqa") / "model.safetensors", os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: preadv(file, [views[0][:1000]], offset))
    reader = TensorReader()
    read = reader.read(read_header(file)["lm_head.weight"])
    assert torch.equal(read, load_file(file)["lm_head.weight"])
    assert reader.num_bytes_read == read.nbytes
