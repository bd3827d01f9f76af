"""`--verify` and `--cache-dir` in whole runs: damage is found and named, and slow bytes are read once."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from strata.engine.types import InputError
from strata.engine.weights.checksums import write_checksums
from strata.engine.weights.safetensors_file import read_header
from strata.scripts.cli import main

from ...families import LAYERS_PER_MODEL

STREAMED = {"resident_layers": 0, "num_groups": 2, "micro_batch_tokens": 64}


@pytest.fixture
def packed(checkpoint, tmp_path):
    """A copy of a checkpoint with the checksums of its tensors beside it."""
    folder = shutil.copytree(checkpoint("llama-gqa"), tmp_path / "packed")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    digests = {
        name: hashlib.sha256(content[tensor.offset : tensor.offset + tensor.num_bytes]).hexdigest()
        for name, tensor in read_header(file).items()
    }
    write_checksums(folder, {file.name: digests})
    return folder


def flip_byte(folder, name: str, where: int = 5) -> None:
    file = folder / "model.safetensors"
    tensor = read_header(file)[name]
    with file.open("r+b") as stream:
        stream.seek(tensor.offset + where)
        byte = stream.read(1)[0]
        stream.seek(tensor.offset + where)
        stream.write(bytes([byte ^ 1]))


def scores_of(run) -> list[np.ndarray]:
    return [row.scores for row in run.scores]


def test_an_undamaged_checkpoint_passes_and_scores_the_same(packed, score):
    plain, verified = score(model=packed, **STREAMED), score(model=packed, verify=True, **STREAMED)
    for left, right in zip(scores_of(plain), scores_of(verified), strict=True):
        np.testing.assert_array_equal(left, right)
    measured = verified.record["measured"]
    assert measured["bytes_read"] == verified.record["plan"]["bytes_read"]
    tensors = read_header(packed / "model.safetensors")
    by_rows = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    assert measured["bytes_verified"] == sum(tensor.num_bytes for tensor in by_rows)
    assert plain.record["measured"]["bytes_verified"] == 0


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.2.input_layernorm.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_a_flipped_bit_is_named(name, packed, score, tmp_path):
    flip_byte(packed, name)
    score(model=packed)
    with pytest.raises(InputError, match="damaged") as raised:
        score(model=packed, verify=True, out=tmp_path / "out")
    assert name in str(raised.value)
    assert "model.safetensors" in str(raised.value)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_verify_needs_checksums(checkpoint, questions, tmp_path, fixed_rates, capsys):
    flags = ["score", "--model", str(checkpoint("llama-gqa")), "--questions", str(questions)]
    status = main([*flags, "--out", str(tmp_path / "out"), "--verify"])
    assert status == 2
    assert "--verify" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_second_sweep_and_the_second_run_read_from_the_cache(checkpoint, score, tmp_path, monkeypatch):
    monkeypatch.setattr("strata.engine.weights.read_cache.MIN_EXTENT_BYTES", 1024)
    model, cache = checkpoint("llama-gqa"), tmp_path / "cache"
    plain = score(model=model, **STREAMED)
    first = score(model=model, cache_dir=cache, **STREAMED)
    second = score(model=model, cache_dir=cache, **STREAMED)
    tensors = read_header(model / "model.safetensors")
    cacheable = sum(
        tensor.num_bytes
        for name, tensor in tensors.items()
        if ".layers." in name and tensor.num_bytes >= 1024
    )
    measured = [run.record["measured"] for run in (first, second)]
    assert measured[0]["bytes_kept_in_cache"] >= cacheable
    assert measured[0]["bytes_from_cache"] >= cacheable
    assert measured[1]["bytes_from_cache"] >= 2 * cacheable
    assert measured[0]["bytes_read"] == measured[1]["bytes_read"] == plain.record["measured"]["bytes_read"]
    for run in (first, second):
        for left, right in zip(scores_of(run), scores_of(plain), strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_cache_on_a_full_disk_is_said_and_the_run_goes_on(checkpoint, score, tmp_path, monkeypatch):
    monkeypatch.setattr("strata.engine.weights.read_cache.MIN_EXTENT_BYTES", 1024)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 20))
    run = score(model=checkpoint("llama-gqa"), cache_dir=tmp_path / "cache", **STREAMED)
    assert len(run.scores) > 0
    assert run.record["measured"]["bytes_kept_in_cache"] == 0
    assert any("--cache-dir" in message for message in run.record["warnings"]["messages"])


def test_layers_resident_after_the_first_sweep_are_read_once(checkpoint, score, tmp_path, monkeypatch):
    monkeypatch.setattr("strata.engine.weights.read_cache.MIN_EXTENT_BYTES", 1024)
    settings = STREAMED | {"resident_layers": LAYERS_PER_MODEL, "head": "loglik"}
    run = score(model=checkpoint("llama-gqa"), cache_dir=tmp_path / "cache", **settings)
    assert run.record["measured"]["bytes_read"] == run.record["plan"]["bytes_read"]
