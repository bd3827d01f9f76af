"""Random checkpoints: whole, of the usual size, the same for one recipe, and never over foreign files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from strata.engine.plan.shapes import LLAMA2_70B, TINY
from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import INDEX_FILE
from strata.scripts.bench.workloads import random_checkpoint
from strata.scripts.bench.workloads.flops import num_parameters
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_checkpoint, "SHARD_BYTES", 100_000)
        return make_random_checkpoint(TINY, tmp_path_factory.mktemp("random") / "tiny", dtype="float32")


def test_checkpoint_loads_in_transformers_with_every_key_matched(checkpoint):
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    model, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.num_parameters() == num_parameters(TINY)
    assert model.dtype == torch.float32


def test_checkpoint_shards_and_index_agree(checkpoint):
    index = json.loads((checkpoint / INDEX_FILE).read_text())
    shards = {name: load_file(checkpoint / name) for name in set(index["weight_map"].values())}
    assert {key: name for name, tensors in shards.items() for key in tensors} == index["weight_map"]
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in shards.values()]
    assert sum(sizes) == index["metadata"]["total_size"] == 4 * num_parameters(TINY)
    assert max(sizes) <= 100_000


def test_weights_are_normal_and_differ_everywhere(checkpoint):
    weights = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    matrices = {name: value for name, value in weights.items() if value.ndim == 2}
    rows = torch.cat([value[:, :64].double() for value in matrices.values()])
    assert len(torch.unique(rows, dim=0)) == len(rows)
    values = torch.cat([value.flatten() for value in matrices.values()])
    assert values.mean().abs() < 1e-3
    assert values.std() == pytest.approx(0.02, rel=0.02)


def test_checkpoint_of_one_file_in_its_dtype_and_by_seed(tmp_path):
    paths = [make_random_checkpoint(TINY, tmp_path / f"{i}", seed=seed) for i, seed in enumerate((1, 1, 2))]
    first, again, other = (load_file(path / "model.safetensors") for path in paths)
    assert not (paths[0] / INDEX_FILE).exists()
    assert json.loads((paths[0] / "config.json").read_text())["dtype"] == "bfloat16"
    assert all(value.dtype == torch.bfloat16 for value in first.values())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_matrix_longer_than_the_pool_of_numbers_repeats_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(random_checkpoint, "POOL_LENGTH", 1009)
    path = make_random_checkpoint(TINY, tmp_path / "short_pool", dtype="float32")
    head = load_file(path / "model.safetensors")["lm_head.weight"]
    assert len(torch.unique(head, dim=0)) == len(head)


def test_whole_checkpoint_is_reused_and_any_other_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(random_checkpoint, "SHARD_BYTES", 100_000)
    out = make_random_checkpoint(TINY, tmp_path / "tiny")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert make_random_checkpoint(TINY, out) == out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(InputError, match="another seed"):
        make_random_checkpoint(TINY, out, seed=1)
    sorted(out.glob("*.safetensors"))[0].unlink()
    with pytest.raises(InputError, match=r"model-00001-of-\d+.safetensors is missing"):
        make_random_checkpoint(TINY, out)


def test_checkpoint_never_touches_a_foreign_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds no random_checkpoint.json"):
        make_random_checkpoint(TINY, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_too_little_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 << 30))
    with pytest.raises(InputError, match=r"100.0 GiB free, but llama2-70b in bfloat16 needs 128.5 GiB"):
        make_random_checkpoint(LLAMA2_70B, tmp_path / "big")
    assert list(tmp_path.iterdir()) == []


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(InputError, match="dtype 'int3': expected one of float32"):
        make_random_checkpoint(TINY, tmp_path / "x", dtype="int3")
