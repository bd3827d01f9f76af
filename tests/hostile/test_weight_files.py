"""Safetensors headers and indexes with one thing changed: refused in one line that names file and tensor.

Independent check of the headers: what the safetensors library itself refuses is refused here
(`test_at_least_as_strict_as_the_library`), and what it reads of the good file is read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.safetensors_file import read_header
from strata.engine.weights.shards import refuse_duplicates
from strata.engine.weights.tensor_reader import TensorReader

from .changed_files import DEEP_LIST, DEEP_OBJECT, copy_folder, refusal

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
    "__metadata__": {"format": "pt"},
}
DATA = bytes(24)


def with_a(**changes: object) -> str:
    return json.dumps(GOOD | {"a": GOOD["a"] | changes})


def with_b(**changes: object) -> str:
    return json.dumps(GOOD | {"b": GOOD["b"] | changes})


def named(name: str) -> str:
    return json.dumps({name if key == "a" else key: value for key, value in GOOD.items()})


HEADERS: dict[str, tuple[str | bytes, str]] = {
    "overlap": (with_b(shape=[8], data_offsets=[8, 24]), "tensor b begins"),
    "gap": (with_a(shape=[3], data_offsets=[0, 12]), "tensor b begins"),
    "gap_at_the_start": (json.dumps({"b": GOOD["b"]}), "tensor b begins"),
    "rest": (json.dumps({"a": GOOD["a"]}), "8 bytes after the last tensor"),
    "negative_begin": (with_a(data_offsets=[-16, 0]), "tensors.a.data_offsets.0"),
    "very_negative": (with_a(data_offsets=[-(10**30), 16]), "tensors.a.data_offsets.0"),
    "end_before_begin": (with_a(data_offsets=[16, 0]), "tensor a ends at byte 0"),
    "huge_offset": (with_a(data_offsets=[0, 10**30]), "tensors.a.data_offsets.1"),
    "beyond": (with_b(data_offsets=[16, 4000]), "truncated: tensor b"),
    "inf_offset": (with_a(data_offsets=[0, 0.0]).replace("0.0", "1e999"), "tensors.a.data_offsets.1"),
    "three_offsets": (with_a(data_offsets=[0, 8, 16]), "tensors.a.data_offsets"),
    "float_shape": (with_a(shape=[2.0, 2.0]), "tensors.a.shape.0"),
    "bool_shape": (with_a(shape=[True, 4]), "tensors.a.shape.0"),
    "negative_shape": (with_a(shape=[-2, -2]), "tensors.a.shape.0"),
    "huge_shape": (with_a(shape=[10**12, 10**12]), "tensor a takes 16 bytes"),
    "dtype_int": (with_a(dtype=5), "tensors.a.dtype"),
    "dtype_unknown": (with_a(dtype="F1"), "dtype F1"),
    "no_shape": (json.dumps(GOOD | {"a": {"dtype": "F32", "data_offsets": [0, 16]}}), "tensors.a.shape"),
    "metadata_int": (json.dumps(GOOD | {"__metadata__": {"a": 5}}), "metadata.a"),
    "metadata_list": (json.dumps(GOOD | {"__metadata__": ["a"]}), "metadata"),
    "list": ("[]", "its header is a list"),
    "deep_json": (DEEP_OBJECT, "nested too deeply"),
    "deep_list": (DEEP_LIST, "nested too deeply"),
    "utf16": (json.dumps(GOOD).encode("utf-16"), "cannot be read as JSON"),
    "utf16_le": (json.dumps(GOOD).encode("utf-16-le"), "cannot be read as JSON"),
    "duplicate_name": (json.dumps(GOOD)[:-1] + ', "a": ' + json.dumps(GOOD["a"]) + "}", "'a' is there twice"),
    "layer_5000digits": (named(f"model.layers.{'9' * 5000}.x"), "a tensor's name has"),
    "digits": (with_a(shape=[0]).replace("[0]", f"[{'9' * 5000}]"), "digits"),
    "not_json": ("not json", "cannot be read as JSON"),
}
OURS_ALONE = {"duplicate_name", "layer_5000digits"}
"""What the library reads, although the format's description forbids the first."""


def write(file: Path, header: str | bytes) -> Path:
    data = header if isinstance(header, bytes) else header.encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data + DATA)
    return file


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_of(case: str, tmp_path: Path) -> None:
    header, told = HEADERS[case]
    file = write(tmp_path / "model.safetensors", header)
    refusal(lambda: read_header(file), "model.safetensors", told)


@pytest.mark.parametrize("case", sorted(HEADERS.keys() - OURS_ALONE))
def test_at_least_as_strict_as_the_library(case: str, tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", HEADERS[case][0])
    with pytest.raises(SafetensorError), safe_open(file, framework="pt"):
        pass


def test_the_good_header_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", json.dumps(GOOD))
    with safe_open(file, framework="pt") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    assert {name: tensor.shape for name, tensor in read_header(file).items()} == shapes


INDEX = "model.safetensors.index.json"

INDEXES: dict[str, tuple[Callable[[dict[str, str]], object], str]] = {
    "dotdot_exists": (lambda names: of(dict.fromkeys(names, "../model/one.safetensors")), "weight_map"),
    "absolute": (lambda names: of(dict.fromkeys(names, "/one.safetensors")), "weight_map"),
    "subfolder": (lambda names: of(dict.fromkeys(names, "a/one.safetensors")), "weight_map"),
    "pickle": (lambda names: of(dict.fromkeys(names, "pytorch_model.bin")), "weight_map"),
    "list": (lambda names: [1], "holds a list"),
    "map_list": (lambda names: of(["a"]), "weight_map"),
    "map_int_values": (lambda names: of(dict.fromkeys(names, 5)), "weight_map"),
    "map_null_values": (lambda names: of(dict.fromkeys(names)), "weight_map"),
    "mixed_values": (lambda names: of(names | {"x": 5}), "weight_map.x"),
    "map_null": (lambda names: of(None), "weight_map"),
    "no_map": (lambda names: {}, "weight_map"),
    "long_name": (lambda names: of(dict.fromkeys(names, "a" * 300 + ".safetensors")), "weight_map"),
    "nul_name": (lambda names: of(dict.fromkeys(names, "a\0.safetensors")), "weight_map"),
    "absent_file": (lambda names: of(names | {"x": "absent.safetensors"}), "absent.safetensors"),
    "absent_tensor": (lambda names: of(names | {"x": "one.safetensors"}), "x"),
}


def of(weight_map: object) -> dict[str, object]:
    return {"weight_map": weight_map}


@pytest.fixture
def sharded(checkpoint, tmp_path) -> Path:
    """A checkpoint of two shards, the second with the head alone."""
    folder = copy_folder(checkpoint("llama-gqa"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": tensors.pop("lm_head.weight")}
    save_file(tensors, folder / "one.safetensors")
    save_file(head, folder / "two.safetensors")
    names = dict.fromkeys(tensors, "one.safetensors") | dict.fromkeys(head, "two.safetensors")
    (folder / INDEX).write_text(json.dumps(of(names)))
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_of(case: str, sharded: Path) -> None:
    make, told = INDEXES[case]
    names = json.loads((sharded / INDEX).read_text())["weight_map"]
    (sharded / INDEX).write_text(json.dumps(make(names)))
    refusal(lambda: open_checkpoint(sharded), str(sharded), told)


def test_an_index_that_is_deep(sharded: Path) -> None:
    (sharded / INDEX).write_text(DEEP_LIST)
    refusal(lambda: open_checkpoint(sharded), INDEX, "nested too deeply")


@pytest.mark.parametrize("stale", ["one.safetensors", "two.safetensors"])
def test_of_two_copies_the_shard_that_the_index_names_counts(stale: str, sharded: Path) -> None:
    other = "two.safetensors" if stale == "one.safetensors" else "one.safetensors"
    right = load_file(sharded / other)
    name = sorted(right)[0]
    kept = load_file(sharded / stale)
    save_file(kept | {name: torch.zeros_like(right[name])}, sharded / stale)
    source = open_checkpoint(sharded).weights[name.removeprefix("model.")].single
    assert torch.equal(TensorReader().read(source.tensor), right[name])
    refusal(lambda: refuse_duplicates(sharded), name)


def test_two_copies_that_the_index_does_not_name(sharded: Path) -> None:
    extra = {"extra.weight": torch.ones(3)}
    for shard in ("one.safetensors", "two.safetensors"):
        save_file(load_file(sharded / shard) | extra, sharded / shard)
    refusal(lambda: open_checkpoint(sharded), "extra.weight", "does not say which counts")


def test_an_index_beside_the_one_file_is_not_used_and_a_warning_says_so(
    checkpoint, sharded: Path, score: Callable[..., Any], tmp_path: Path
) -> None:
    stale = load_file(sharded / "one.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in stale.items()}, sharded / "one.safetensors")
    good = checkpoint("llama-gqa")
    (sharded / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes())
    found, expected = score(model=sharded), score(model=good)
    assert [list(row.scores) for row in found.scores] == [list(row.scores) for row in expected.scores]
    (told,) = [line for line in found.record["warnings"]["messages"] if INDEX in line]
    assert "model.safetensors is read" in told


def test_a_shard_that_is_no_file(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    (sharded / "two.safetensors").mkdir()
    with pytest.raises(InputError, match=r"two\.safetensors"):
        open_checkpoint(sharded)
