"""Weights of GGUF files: those of the model that was written, whatever llama.cpp's converter does to them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from strata.engine.model.open_model import Computing, open_model
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint, open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader

pytest.importorskip("gguf")

from ....tiny_gguf import CONFIGS, build_model, write_tiny_gguf


def assert_weights_are(checkpoint: Checkpoint, family: str, atol: float) -> None:
    """All weights, layers through the loader and those beside them by rows, against the source's."""
    reader = TensorReader()
    model = open_model(checkpoint, (), Computing(devices=("cpu",), dtype=torch.float32), reader)
    found = {
        f"model.layers.{layer}.{name}": weight
        for layer in range(checkpoint.num_layers)
        for name, weight in model.loader.load(layer).items()
    }
    beside = [name for name in checkpoint.weights if not name.startswith("layers.")]
    for name in beside:
        prefix = "" if name.startswith("lm_head") else "model."
        found[prefix + name] = checkpoint.require_rows(name).read(reader)
    expected = build_model(family).state_dict()
    if checkpoint.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight.float(), expected[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_are_those_of_the_model(tmp_path: Path, family: str) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf", family=family)
    # Gemma's norms have gained and lost 1 in float32.
    assert_weights_are(open_checkpoint(path), family, atol=2e-7)


@pytest.mark.parametrize("family", ["llama-biases", "gemma3", "qwen3moe"])
@pytest.mark.parametrize(("matrix_type", "atol"), [("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 8e-3)])
def test_rounded_weights_keep_their_places(
    tmp_path: Path, family: str, matrix_type: str, atol: float
) -> None:
    path = write_tiny_gguf(
        tmp_path / "model.gguf", family=family, matrix_type=matrix_type, embedding_type=matrix_type
    )
    assert_weights_are(open_checkpoint(path), family, atol)


def test_any_file_of_a_split_opens_all(tmp_path: Path) -> None:
    first = write_tiny_gguf(tmp_path / "model.gguf", split_tensors=12)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1
    for file in (first, files[-1]):
        assert_weights_are(open_checkpoint(file), "llama", atol=0)


def test_a_missing_file_of_a_split_is_named(tmp_path: Path) -> None:
    first = write_tiny_gguf(tmp_path / "model.gguf", split_tensors=12)
    last = sorted(tmp_path.iterdir())[-1]
    last.unlink()
    with pytest.raises(InputError, match=rf"{last.name}: no such file; expected a GGUF model, all files"):
        open_checkpoint(first)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.gguf: no such file"):
        open_checkpoint(tmp_path / "absent.gguf")


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    """transformers' loader drops it; llama.cpp computes with it."""
    odd = {"blk.1.attn_q.scale": np.ones(32, np.float32)}
    path = write_tiny_gguf(tmp_path / "model.gguf", tensors=odd)
    with pytest.raises(InputError, match=r"tensor blk\.1\.attn_q\.scale has no place in transformers' Llama"):
        open_checkpoint(path)


def test_a_layer_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_up.weighs", 1))
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weighs"):
        open_checkpoint(path)


def test_without_the_package_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        InputError, match=r'GGUF files need gguf; expected pip install "strata-score\[gguf\]"'
    ):
        open_checkpoint(path)
