"""What the checkpoint reader says of directories it cannot read: absent, damaged or misshapen parts."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint

from ...families import LAYERS_PER_MODEL
from .changed_copies import QUERY, copy_changed, make_loader


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
