"""Packing GGUF files: the folder left scores as the file does, here and in transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from strata.engine.prompts.tokenizer import read_tokenizer
from strata.engine.weights.checkpoint import open_checkpoint

from ...reference import Reference

pytest.importorskip("gguf")

from ...tiny_gguf import build_model, write_tiny_gguf

TOLERANCE = 1e-4
TEXT = "Question: 12 + 30?\n  Answer: été, 42."


def by_id(run: object) -> dict[str, np.ndarray]:
    return {row.question.id: row.scores for row in run.scores}


@pytest.mark.parametrize("family", ["llama-tied", "gemma3", "qwen2", "qwen3moe"])
def test_a_packed_file_scores_the_same(family, tmp_path, pack, score):
    source = write_tiny_gguf(
        tmp_path / "model.gguf", family=family, matrix_type="Q8_0", embedding_type="Q5_1"
    )
    packed = pack(source, "fp32", verify=True)
    expected = by_id(score(model=source, head="loglik", normalize="none"))
    run = score(model=packed, head="loglik", normalize="none", verify=True)
    for name, scores in by_id(run).items():
        np.testing.assert_allclose(scores, expected[name], rtol=0, atol=TOLERANCE)
    theirs = Reference(packed).score(run.out, "loglik")
    for name, scores in theirs.items():
        np.testing.assert_allclose(scores, expected[name], rtol=0, atol=TOLERANCE)


def test_what_is_stored_as_numbers_keeps_its_dtype(tmp_path, pack):
    """Gemma's norms, from which 1 is taken, are float32 in the file and stay that beside int8 matrices."""
    source = write_tiny_gguf(tmp_path / "model.gguf", family="gemma3", matrix_type="Q4_0")
    packed = open_checkpoint(pack(source, "int8"))
    norm = packed.require_rows("norm.weight")
    assert norm.dtype == torch.float32
    assert packed.format_name == "int8"
    expected = build_model("gemma3").state_dict()["model.norm.weight"]
    from strata.engine.weights.tensor_reader import TensorReader

    torch.testing.assert_close(norm.read(TensorReader()), expected, rtol=0, atol=2e-7)


def test_the_tokenizer_comes_along(tmp_path, pack):
    source = write_tiny_gguf(tmp_path / "model.gguf")
    packed = pack(source, "bf16")
    expected = read_tokenizer(source)(TEXT)["input_ids"]
    assert hf.AutoTokenizer.from_pretrained(packed)(TEXT)["input_ids"] == expected
    assert read_tokenizer(packed)(TEXT)["input_ids"] == expected


def test_a_split_is_packed_whole(tmp_path, pack):
    first = write_tiny_gguf(tmp_path / "model.gguf", split_tensors=9)
    packed = open_checkpoint(pack(first, "fp32"))
    assert packed.weights.keys() == open_checkpoint(first).weights.keys()
