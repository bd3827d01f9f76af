"""What lies in a packed folder beside the values: shards, index, checksums, small files."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file

from strata.engine.weights.checksums import digest_of, read_checksums

from .packed_weights import read_all


def test_shards_are_bounded_and_indexed(wide, pack):
    out = pack(wide, "int8", shard_gib=50_000 / 2**30)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    for file in files:
        tensors = load_file(file)
        assert {name for name, shard in index["weight_map"].items() if shard == file.name} == tensors.keys()
        assert len({name.removesuffix("_scale") for name in tensors}) == 1 or file.stat().st_size < 60_000
    num_bytes = sum(tensor.numel() * tensor.itemsize for tensor in read_all(out).values())
    assert index["metadata"]["total_size"] == num_bytes


def test_checksums_are_those_of_the_bytes(wide, pack):
    out = pack(wide, "nf4", verify=True)
    found = read_checksums(out).tensors["model.safetensors"]
    stored = load_file(out / "model.safetensors")
    assert found == {
        name: digest_of(tensor.reshape(-1).view(torch.uint8).numpy().data) for name, tensor in stored.items()
    }


def test_small_files_come_along_and_weights_of_other_kinds_do_not(wide, pack):
    for name in ("pytorch_model.bin", "model.gguf", "quantize_config.json", ".hidden", "notes.md"):
        (wide / name).write_text("x")
    out = pack(wide, "bf16")
    expected = {file.name for file in wide.iterdir() if file.suffix in (".json", ".md", ".jinja")}
    expected -= {"quantize_config.json", "model.safetensors.index.json"}
    assert {file.name for file in out.iterdir()} == expected | {"model.safetensors", "strata_checksums.json"}
    assert (out / "tokenizer.json").read_bytes() == (wide / "tokenizer.json").read_bytes()
