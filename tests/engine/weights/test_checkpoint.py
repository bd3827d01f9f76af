"""The checkpoint reader against transformers' own modules, and what it says of directories it cannot read."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from strata.engine.model.decoder import build_decoder
from strata.engine.model.layer_loader import LayerLoader
from strata.engine.model.weight_routes import route_layers
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint, open_checkpoint
from strata.engine.weights.safetensors_file import read_header
from strata.engine.weights.tensor_reader import TensorReader

from ...families import CONFIGS, FAMILIES, LAYERS_PER_MODEL, randomize_weights

EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def make_loader(checkpoint: Checkpoint, dtype=torch.float32, reader=None) -> LayerLoader:
    routes = route_layers(checkpoint, build_decoder(checkpoint.config, dtype), dtype)
    return LayerLoader(checkpoint, routes, reader or TensorReader())


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
    tied, own = open_checkpoint(checkpoint("llama-tied")), open_checkpoint(checkpoint("llama-gqa"))
    assert tied.output_embedding == "embed_tokens.weight"
    assert own.output_embedding == "lm_head.weight"


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


def convert(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    for name in tensors:
        tensors[name] = tensors[name].to(dtype)


def copy_changed(source: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a single-file checkpoint with its tensors changed in place."""
    folder = shutil.copytree(source, tmp_path / "changed", dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def sharded(checkpoint, tmp_path) -> Path:
    return shutil.copytree(checkpoint("llama-gqa", "sharded"), tmp_path / "sharded")


@pytest.fixture
def single(checkpoint, tmp_path) -> Path:
    return shutil.copytree(checkpoint("llama-gqa"), tmp_path / "single")


def assert_refused(path: Path, *culprits: str) -> None:
    with pytest.raises(InputError) as raised:
        make_loader(open_checkpoint(path))
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    for culprit in culprits:
        assert culprit in message


def test_no_such_directory(tmp_path):
    assert_refused(tmp_path / "nowhere", "nowhere", "not a directory")


def test_no_config(single):
    (single / "config.json").unlink()
    assert_refused(single, "single", "no config.json")


def test_a_config_that_is_not_json(single):
    (single / "config.json").write_text("{")
    assert_refused(single, "config.json")


def test_a_config_of_an_unknown_model_type(single):
    (single / "config.json").write_text('{"model_type": "abacus"}')
    assert_refused(single, "config.json", "abacus")


def test_a_quantization_that_is_not_known(single):
    config = json.loads((single / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "spqr", "bits": 3}
    (single / "config.json").write_text(json.dumps(config))
    assert_refused(single, "config.json", "quant_method 'spqr'", "expected one of")


def test_pickled_weights_alone(single):
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    assert_refused(single, "pytorch_model.bin", "pickle")


def test_no_weights(single):
    (single / "model.safetensors").unlink()
    assert_refused(single, "single", "no weights")


def test_a_shard_that_the_index_lists_is_absent(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[2]
    shard.unlink()
    assert_refused(sharded, shard.name, "missing")


def test_an_index_that_names_an_absent_tensor(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name, shard = f"model.layers.{LAYERS_PER_MODEL}.extra.weight", sorted(content["weight_map"].values())[0]
    content["weight_map"][name] = shard
    index.write_text(json.dumps(content))
    assert_refused(sharded, index.name, name, shard)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight": {}}'])
def test_an_index_that_is_none(content, sharded):
    (sharded / "model.safetensors.index.json").write_text(content)
    assert_refused(sharded, "model.safetensors.index.json", "index")


@pytest.mark.parametrize("keep", [-1, -5000, 100, 8, 7, 0])
def test_a_truncated_file(keep, single):
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert_refused(single, "model.safetensors")


def write_header(file: Path, header: bytes) -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


@pytest.mark.parametrize("header", [b"not json", b'{"a": ', b"\xff\xfe\xff\xff"])
def test_a_header_that_is_not_json(header, single):
    write_header(single / "model.safetensors", header)
    assert_refused(single, "model.safetensors", "JSON")


MALFORMED = {
    "a list": b"[]",
    "no entry": b'{"a": 1}',
    "no offsets": b'{"a": {"dtype": "F32", "shape": [2]}}',
    "no dtype": b'{"a": {"shape": [2], "data_offsets": [0, 8]}}',
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_header_that_is_json_of_another_kind(case, single):
    write_header(single / "model.safetensors", MALFORMED[case])
    assert_refused(single, "model.safetensors")


def test_a_layer_that_lacks_a_weight(checkpoint, tmp_path):
    path = copy_changed(checkpoint("llama-gqa"), tmp_path, lambda tensors: tensors.pop(QUERY))
    assert_refused(path, "changed", "layers.1.self_attn.q_proj.weight")


@pytest.mark.parametrize("name", [QUERY, "model.layers.0.input_layernorm.weight"])
def test_a_layer_weight_of_integers(name, checkpoint, tmp_path):
    def change(tensors):
        tensors[name] = torch.ones(tensors[name].shape, dtype=torch.int8)

    assert_refused(copy_changed(checkpoint("llama-gqa"), tmp_path, change), name, "I8", "F32")


def test_a_layer_weight_of_another_shape(checkpoint, tmp_path):
    def change(tensors):
        tensors[QUERY] = torch.ones(24, 32)

    path = copy_changed(checkpoint("llama-gqa"), tmp_path, change)
    assert_refused(path, "layers.1.self_attn.q_proj.weight", "[24, 32]", "[32, 32]")


def test_too_few_experts_are_named_when_the_layer_is_read(checkpoint, tmp_path):
    def change(tensors):
        for name in [name for name in tensors if "layers.1." in name and "experts.3." in name]:
            del tensors[name]

    loader = make_loader(open_checkpoint(copy_changed(checkpoint("mixtral"), tmp_path, change)))
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.\w+ has shape \[3, .* expects \[4, "):
        loader.load(1)


BESIDE_THE_LAYERS = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def run_damaged(checkpoint, questions, tmp_path, capsys, change) -> tuple[int, str, bool]:
    """Exit status and stderr of a run on a damaged copy, and whether it left anything."""
    from strata.scripts.cli import main

    path, out = copy_changed(checkpoint("llama-gqa"), tmp_path, change), tmp_path / "out"
    given = ["score", "--model", str(path), "--questions", str(questions), "--out", str(out)]
    status = main([*given, "--head", "letters", "--devices", "cpu"])
    return status, capsys.readouterr().err, out.exists() and bool(list(out.iterdir()))


@pytest.mark.parametrize("name", BESIDE_THE_LAYERS)
@pytest.mark.usefixtures("fixed_rates")
def test_integers_beside_the_layers_are_refused_before_anything_is_written(
    name, checkpoint, questions, tmp_path, capsys
):
    def change(tensors):
        tensors[name] = torch.ones(tensors[name].shape, dtype=torch.int8)

    status, stderr, left = run_damaged(checkpoint, questions, tmp_path, capsys, change)
    assert (status, left) == (2, False)
    assert name in stderr
    assert "I8" in stderr


SHAPES = {
    "embedding": ("model.embed_tokens.weight", (384, 24)),
    "norm": ("model.norm.weight", (24,)),
    "projection": ("lm_head.weight", (384, 24)),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.usefixtures("fixed_rates")
def test_wrong_shapes_beside_the_layers_are_refused(case, checkpoint, questions, tmp_path, capsys):
    name, shape = SHAPES[case]

    def change(tensors):
        tensors[name] = torch.ones(shape)

    status, stderr, left = run_damaged(checkpoint, questions, tmp_path, capsys, change)
    assert (status, left) == (2, False)
    assert name.removeprefix("model.") in stderr


@pytest.mark.usefixtures("fixed_rates")
def test_a_projection_of_fewer_rows_than_token_ids(checkpoint, questions, tmp_path, capsys):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:20].clone()

    status, stderr, left = run_damaged(checkpoint, questions, tmp_path, capsys, change)
    assert (status, left) == (2, False)
    assert "lm_head.weight" in stderr


def test_a_header_whose_shape_and_bytes_disagree(single):
    file = single / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[QUERY]["shape"][0] -= 1
    changed = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    file.write_bytes(content[:8] + changed + content[8 + length :])
    assert_refused(single, "model.safetensors", QUERY, "bytes", "expected")
