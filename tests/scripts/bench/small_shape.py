"""A Llama shape as small as the storage formats allow."""

from __future__ import annotations

from strata.engine.plan.shapes import ModelShape

# Wide enough for groups of 128 inputs.
SMALL = ModelShape(
    name="small",
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=256,
    max_position=512,
)
