"""The bench of members on a tiny shape: the base is read once for all adapters; the ratio is of its parts."""

from __future__ import annotations

import pytest

from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.members import members
from strata.scripts.bench.members.config import MembersBenchConfig


def test_the_base_is_read_once(tmp_path):
    def figures(num_adapters):
        settings = {"shape": "tiny", "folder": tmp_path, "prefix_tokens": 20, "option_tokens": 4, "rounds": 1}
        return members.time_adapters(MembersBenchConfig(num_adapters=num_adapters, **settings))

    one, four = figures(1), figures(4)
    shape = SHAPES["tiny"]
    layer = shape.hidden_size * (
        2 * shape.num_heads * shape.head_dim
        + 2 * shape.num_kv_heads * shape.head_dim
        + 3 * shape.intermediate_size
        + 2
    )
    assert four["bytes_read"] - one["bytes_read"] < 2 * layer, "heads are read a member, layers once"
    assert one["bytes_read"] > 2 * layer * shape.num_layers
    ideal_s = max(four["read_s"], 4 * four["alone_s"])
    assert four["adapters_over_ideal"] == pytest.approx(four["shared_s"] / ideal_s)
