"""Which files hold a checkpoint's weights, and how its config is read, by the folders one meets."""

import json
from pathlib import Path

import pytest
from transformers.modeling_utils import _get_resolved_checkpoint_files

from strata.engine.encoders.encoder import first_weights_file, is_encoder, read_encoder_config
from strata.engine.model_files.config_file import read_config_json
from strata.engine.plan.shapes import read_shape
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.checkpoint_folder import (
    read_config,
    read_weight_map,
    unread_index,
    weight_files,
)


def lay_out(folder: Path, files: list[str], index: object = None) -> Path:
    """A folder with these files, empty, and an index of that content, if any."""
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).touch()
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def names(folder: Path) -> list[str]:
    assert all(file.parent == folder for file in weight_files(folder))
    return [file.name for file in weight_files(folder)]


def test_the_index_names_each_file_once(tmp_path):
    weight_map = {"b": "two.safetensors", "a": "one.safetensors", "c": "two.safetensors"}
    folder = lay_out(tmp_path, ["three.safetensors"], {"weight_map": weight_map})
    assert names(folder) == ["one.safetensors", "two.safetensors"]
    assert read_weight_map(folder) == weight_map
    assert unread_index(folder) is None


def test_the_one_file_comes_before_an_index_as_transformers_has_it(tmp_path):
    """Independent check: the files that transformers itself resolves."""
    folder = lay_out(
        tmp_path, ["model.safetensors", "one.safetensors"], {"weight_map": {"a": "one.safetensors"}}
    )
    resolved, _ = _get_resolved_checkpoint_files(folder, None, None, True, None, False)
    assert [Path(file).name for file in resolved] == names(folder) == ["model.safetensors"]
    assert "model.safetensors is read" in unread_index(folder)
    assert "model.safetensors.index.json and its shards are not used" in unread_index(folder)


def test_one_file_and_no_other_of_a_like_name(tmp_path):
    files = ["model.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"]
    assert names(lay_out(tmp_path, files)) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "found no weights"),
        (["pytorch_model.bin"], "found only pytorch_model.bin, a pickle, which is never loaded"),
        (
            ["model.fp16.safetensors", "pytorch_model.bin"],
            r"found model\.fp16\.safetensors, pytorch_model\.bin",
        ),
    ],
)
def test_no_weights_as_safetensors(files, found, tmp_path):
    with pytest.raises(InputError, match=rf"expected model\.safetensors or .*\.index\.json, {found}"):
        weight_files(lay_out(tmp_path, files))


@pytest.mark.parametrize("index", [{}, [], {"weight_map": 3}, {"weight_map": ["a"]}, "text"])
def test_an_index_that_is_none_is_named(index, tmp_path):
    with pytest.raises(
        InputError, match=r"model\.safetensors\.index\.json: (not a safetensors index|holds a)"
    ):
        weight_files(lay_out(tmp_path, ["one.safetensors"], index))


def test_an_encoder_in_shards_is_read_by_its_index(tmp_path):
    folder = lay_out(tmp_path, [], {"weight_map": {"a": "encoder-1.safetensors"}})
    assert first_weights_file(folder).name == "encoder-1.safetensors"


@pytest.mark.parametrize("read", [read_config, read_encoder_config, open_checkpoint])
def test_all_tell_in_the_same_words_that_a_config_cannot_be_had(read, tmp_path):
    with pytest.raises(InputError, match=r"absent: not a directory; --model expects"):
        read(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no config\.json; --model expects"):
        read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(InputError, match=r"config\.json: transformers cannot read it: [^\n]*abacus"):
        read(tmp_path)


def test_a_shape_that_transformers_cannot_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    for name in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(InputError, match=r"config\.json: transformers cannot read it: [^\n]*abacus"):
            read_shape(str(name))


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), ("{", "cannot be read"), ("[]", "holds a list")]
)
def test_a_config_that_is_no_json_object(content, told, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=rf"config\.json: {told}"):
        read_config_json(tmp_path)
    assert not is_encoder(tmp_path)
