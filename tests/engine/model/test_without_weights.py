"""Modules are built without memory for weights; buffers are held against a model built the plain way."""

from __future__ import annotations

import torch
from transformers import AutoModel, LlamaConfig, MixtralConfig

from strata.engine.model.decoder import build_decoder

SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 1, "vocab_size": 32,
}  # fmt: skip


def test_experts_that_no_machine_has_memory_for() -> None:
    """One tensor of 35 TB: what is made before it is moved to the meta device could not be made."""
    wide = {"hidden_size": 4_096, "intermediate_size": 16_384, "num_local_experts": 65_536}
    decoder = build_decoder(MixtralConfig(**{**SMALL, **wide}))
    assert sum(weight.nbytes for weight in decoder.base.parameters()) > 35e12
    assert {weight.device.type for weight in decoder.base.parameters()} == {"meta"}


def test_buffers_are_computed() -> None:
    config = LlamaConfig(**SMALL)
    expected = dict(AutoModel.from_config(config).named_buffers())
    buffers = dict(build_decoder(config).base.named_buffers())
    assert buffers.keys() == expected.keys() != set()
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, expected[name])
