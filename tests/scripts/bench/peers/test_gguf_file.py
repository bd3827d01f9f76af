"""The GGUF file holds the checkpoint, in the order llama.cpp wants, and refuses what it would get wrong."""

from __future__ import annotations

import json

import pytest
import torch

from strata.engine.plan.shapes import TINY
from strata.scripts.bench.peers.gguf_file import gguf_name, interleave_halves, write_gguf
from strata.scripts.bench.workloads.baselines import load_hf_model
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint

from .peer_work import dequantize_into


def test_interleaved_rows_pair_up_what_transformers_rotates_together():
    rows = torch.arange(2 * 6)[:, None].expand(-1, 3)
    found = interleave_halves(rows, num_heads=2)
    assert found[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert found.shape == rows.shape


def test_gguf_names():
    assert gguf_name("model.layers.12.self_attn.o_proj.weight") == "blk.12.attn_output.weight"
    assert gguf_name("lm_head.weight") == "output.weight"
    for stranger in ("model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.up_proj.bias"):
        with pytest.raises(ValueError, match=f"tensor {stranger}: expected those of a plain Llama"):
            gguf_name(stranger)


# Half a step of a block is at most its largest weight over 2 * 127, or 8 * 2; Q4_0 spans -8 to 7, so that a
# block of two signs may lose a whole step. The float16 rounding of the step comes on top.
@pytest.mark.parametrize(("matrix_type", "relative"), [("bf16", 0.0), ("q8_0", 0.6 / 127), ("q4_0", 1.1 / 8)])
def test_gguf_file_holds_the_checkpoint(matrix_type, relative, checkpoint, tmp_path):
    gguf = pytest.importorskip("gguf")
    folder = checkpoint("bfloat16")
    write_gguf(folder, tmp_path / "model.gguf", matrix_type)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    assert types["blk.2.ffn_down.weight"] == types["token_embd.weight"] == matrix_type
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "f32"
    assert types["output.weight"] == {"q4_0": "q8_0"}.get(matrix_type, matrix_type)
    wanted = {"block_count": 3, "embedding_length": 64, "feed_forward_length": 192, "vocab_size": 256}
    wanted |= {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 16}
    found = {name: reader.get_field(f"llama.{name}").contents() for name in wanted}
    assert found == wanted
    model = load_hf_model(folder, dtype=torch.float32, device="cpu")
    original = {name: weight.clone() for name, weight in model.state_dict().items()}
    dequantize_into(model, tmp_path / "model.gguf")
    for name, weight in model.state_dict().items():
        blocks = original[name].reshape(-1, 32)
        error = (weight.reshape(-1, 32) - blocks).abs()
        assert (error <= relative * blocks.abs().amax(dim=1, keepdim=True)).all(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2', expected 'llama'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True, expected False"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type 'yarn'"),
    ],
)
def test_gguf_writer_refuses_what_it_would_get_wrong(changes, message, checkpoint, tmp_path):
    pytest.importorskip("gguf")
    config = json.loads((checkpoint("bfloat16") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path, tmp_path / "model.gguf", "bf16")


def test_gguf_writer_refuses_types_it_does_not_know_and_rows_it_cannot_cut(tmp_path):
    pytest.importorskip("gguf")
    folder = make_random_checkpoint(TINY, tmp_path / "tiny")
    with pytest.raises(ValueError, match="matrix_type 'q2_k': expected one of bf16, q8_0, q4_0"):
        write_gguf(folder, tmp_path / "model.gguf", "q2_k")
    with pytest.raises(ValueError, match=r"down_proj.weight of shape \[64, 176\].*not a multiple"):
        write_gguf(folder, tmp_path / "model.gguf", "q8_0")
