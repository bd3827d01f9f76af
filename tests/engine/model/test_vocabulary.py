"""Log-probabilities from a projection on disk, against torch's own log_softmax over the whole vocabulary."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from strata.engine.model import vocabulary
from strata.engine.model.final_logits import FinalLogits
from strata.engine.model.vocabulary import (
    TargetTokens,
    VocabularyProjection,
    target_logits,
    vocabulary_projection,
)
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.formats.stored_weight import plain_weight
from strata.engine.weights.safetensors_file import read_header
from strata.engine.weights.stored_rows import rows_of
from strata.engine.weights.tensor_reader import TensorReader

V, D, S = 50, 12, 7
CPU = torch.device("cpu")
# Both sides sum in float32, in another order.
TOLERANCE = 1e-5
# Readout rows repeat, one has no target; token ids repeat; the first and the last id are there.
ROWS = np.array([6, 0, 0, 3, 3, 5, 1, 2, 0])
TOKEN_IDS = np.array([0, 49, 3, 17, 17, 48, 0, 30, 3])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


READOUTS = draw(S, D, seed=1)


@pytest.fixture
def project(tmp_path):
    """`project(dtype, bias, softcap)` -> a stored projection, and its logits [S, V] by torch."""

    def make(dtype=torch.float32, *, bias=False, softcap=None) -> tuple[VocabularyProjection, torch.Tensor]:
        tensors = {"other": draw(5), "weight": 3 * draw(V, D).to(dtype)}
        if bias:
            tensors["bias"] = 5 * draw(V, seed=2).to(dtype)
        save_file(tensors, tmp_path / "head.safetensors")
        stored = read_header(tmp_path / "head.safetensors")
        logits = READOUTS.double() @ tensors["weight"].double().T
        if bias:
            logits += tensors["bias"].double()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        rows = {name: rows_of(plain_weight(tensor)) for name, tensor in stored.items()}
        return VocabularyProjection(
            stored=rows["weight"], bias=rows.get("bias"), final=FinalLogits(softcap=softcap)
        ), logits

    return make


def compute(
    projection: VocabularyProjection, *, normalized: bool, reader=None, readouts: torch.Tensor = READOUTS
) -> np.ndarray:
    targets = TargetTokens(rows=ROWS, token_ids=TOKEN_IDS, normalized=normalized)
    return target_logits(projection, readouts, targets, reader or TensorReader(), [CPU]).values


SHAPES = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 4.0},
    "bias and softcap": {"bias": True, "softcap": 4.0},
    "bfloat16": {"dtype": torch.bfloat16, "bias": True},
    "float16": {"dtype": torch.float16},
}


@pytest.mark.parametrize("readout_rows", [1, 3, 1024])
@pytest.mark.parametrize("block_rows", [1, 7, 25, V, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probabilities_whatever_the_blocks(shape, block_rows, readout_rows, project, monkeypatch):
    monkeypatch.setitem(vocabulary.BLOCK_BYTES, "cpu", block_rows * D * 4)
    monkeypatch.setattr(vocabulary, "READOUT_ROWS", readout_rows)
    projection, logits = project(**SHAPES[shape])
    expected = logits.log_softmax(dim=1)[ROWS, TOKEN_IDS].numpy()
    actual = compute(projection, normalized=True)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("readout_rows", [1, 3, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_label_rows_alone(shape, readout_rows, project, monkeypatch):
    monkeypatch.setattr(vocabulary, "READOUT_ROWS", readout_rows)
    projection, logits = project(**SHAPES[shape])
    expected = logits[ROWS, TOKEN_IDS].numpy()
    np.testing.assert_allclose(compute(projection, normalized=False), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_bytes_read_are_those_promised(normalized, bias, project, monkeypatch):
    monkeypatch.setitem(vocabulary.BLOCK_BYTES, "cpu", 7 * D * 4)
    projection, _ = project(torch.bfloat16, bias=bias)
    reader = TensorReader()
    compute(projection, normalized=normalized, reader=reader)
    rows = V if normalized else len(set(TOKEN_IDS))
    expected = 2 * (rows * D + V * bias)
    assert reader.num_bytes_read == projection.bytes_needed(TOKEN_IDS, normalized=normalized) == expected


def test_blocks_are_no_larger_than_they_may_be(project, monkeypatch):
    monkeypatch.setitem(vocabulary.BLOCK_BYTES, "cpu", 8 * D * 4)
    sizes, original = [], TensorReader.read_rows

    def read_rows(self, tensor, first, last):
        sizes.append(last - first)
        return original(self, tensor, first, last)

    monkeypatch.setattr(TensorReader, "read_rows", read_rows)
    compute(project()[0], normalized=True)
    assert sizes == [8, 8, 8, 8, 8, 8, 2]


def test_large_logits_do_not_overflow(project):
    projection, logits = project()
    actual = compute(projection, normalized=True, readouts=1e4 * READOUTS)
    expected = (1e4 * logits).log_softmax(dim=1)[ROWS, TOKEN_IDS].numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=0.1)


def test_readouts_in_half_precision_are_projected_in_float32(project):
    projection, _ = project()
    half = READOUTS.to(torch.bfloat16)
    expected = compute(projection, normalized=True, readouts=half.float())
    actual = compute(projection, normalized=True, readouts=half)
    np.testing.assert_array_equal(actual, expected)


def test_a_projection_of_its_own(checkpoint):
    projection = vocabulary_projection(open_checkpoint(checkpoint("llama-gqa")))
    assert projection.stored.tensor.name == "lm_head.weight"
    assert (projection.bias, projection.final) == (None, FinalLogits())


def test_a_tied_projection_is_the_input_embedding(checkpoint):
    model = checkpoint("llama-tied")
    assert "lm_head.weight" not in load_file(model / "model.safetensors")
    assert vocabulary_projection(open_checkpoint(model)).stored.tensor.name == "model.embed_tokens.weight"


def test_a_soft_cap_is_read_from_the_config(checkpoint):
    model = checkpoint("gemma2")
    expected = json.loads((model / "config.json").read_text())["final_logit_softcapping"]
    assert vocabulary_projection(open_checkpoint(model)).final == FinalLogits(softcap=expected)
    assert expected == 7.0


def test_a_bias_is_found(checkpoint, tmp_path):
    model = tmp_path / "biased"
    model.mkdir()
    (model / "config.json").write_text((checkpoint("llama-gqa") / "config.json").read_text())
    tensors = load_file(checkpoint("llama-gqa") / "model.safetensors")
    save_file(tensors | {"lm_head.bias": draw(384)}, model / "model.safetensors")
    bias = vocabulary_projection(open_checkpoint(model)).bias
    assert bias is not None
    assert bias.tensor.name == "lm_head.bias"


def test_a_classifier_has_no_projection(checkpoint):
    with pytest.raises(InputError, match=r"no lm_head\.weight"):
        vocabulary_projection(open_checkpoint(checkpoint("llama-gqa", "classifier")))
