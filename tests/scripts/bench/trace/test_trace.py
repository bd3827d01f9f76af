"""What a 70B layer asks of a card: budgets at true sizes, and that masks are seen where there are some."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from strata.engine.machine.profile import load_profile
from strata.kernels.prefix_attention.backend import CUDA_CUT
from strata.kernels.prefix_attention.sdpa import SdpaBackend
from strata.scripts.bench.trace import trace
from strata.scripts.bench.trace.config import TraceBenchConfig

KERNELS_PER_LAYER = {"efficient": 30, "flash": 24}
ATTENTION_CALLS = {"efficient": 1, "flash": 2}
"""The second is of siblings, over what is above them."""
SMALL = TraceBenchConfig(shape="tiny", micro_batch_tokens=64, prefix_tokens=30, option_tokens=4)


@pytest.mark.parametrize("name", KERNELS_PER_LAYER)
def test_a_70b_layer_has_no_masks_and_few_kernels(name):
    found = trace.trace_layer(TraceBenchConfig(), trace.BACKENDS[name])
    assert found["mask_bytes_per_layer"] == 0
    assert found["kernels_per_layer"] <= KERNELS_PER_LAYER[name]
    assert found["scores_over_needed"] == 1.0
    assert found["attention_calls"] == ATTENTION_CALLS[name]


def test_masks_of_joined_tiles_are_counted(monkeypatch):
    """Else a count of none would say nothing."""

    class Joined(SdpaBackend):
        cut = CUDA_CUT

    found = trace.trace_layer(SMALL, Joined())
    assert found["mask_bytes_per_layer"] > 0


def test_kernels_are_operators_that_are_no_views():
    with trace.KernelCounter() as counter:
        states = torch.empty(4, 6, device="meta")
        (states.T.unflatten(0, (2, 3)) + 1).mul_(2)
        states.T.reshape(-1)
        states.reshape(-1)
        torch.ones(3).add_(1)
    assert dict(counter.kernels) == {"add": 1, "mul_": 1, "clone": 1}


def test_bytes_are_those_of_what_is_met_once():
    def moved(work) -> int:
        states = torch.empty(4, 6, dtype=torch.float16, device="meta")
        with trace.KernelCounter() as counter:
            work(states)
        return counter.moved_bytes

    size = 4 * 6 * 2
    assert moved(lambda states: states + 1) == 2 * size
    assert moved(lambda states: states.mul_(2)) == 2 * size
    assert moved(lambda states: states.copy_(states.clone())) == 4 * size
    assert moved(lambda states: states[:1].expand(4, 6) + states) == size // 4 + 2 * size
    rows = torch.empty(2, dtype=torch.int64, device="meta")
    assert moved(lambda states: states.index_select(0, rows)) == 2 * (size // 2) + 16
    assert moved(lambda states: states @ states.T) == 0


@pytest.mark.parametrize(
    ("profile", "attention", "bytes_per_s"),
    [
        ("kaggle-2xt4", "efficient", 0.75 * 320e9),
        ("card-24gb", "flash", 0.75 * 936e9),
        ("h100", "flash", 0.8 * 3.35e12),
    ],
)
def test_profiles_of_cards_follow_from_what_is_counted(profile, attention, bytes_per_s):
    """At the share of the card's memory rate that the profile's source names; nobody has timed it there."""
    found = trace.trace_layer(TraceBenchConfig(shape="qwen3-32b"), trace.BACKENDS[attention])
    compute = load_profile(profile).compute
    for dtype, key in (("float16", "moved_bytes_per_element"), ("int8", "int8_moved_bytes_per_element")):
        layer = compute[dtype].layer
        assert layer is not None
        assert layer.elements_per_s == pytest.approx(bytes_per_s / found[key], rel=0.02)


def test_the_record_holds_every_way_of_attention(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trace, "RESULTS", tmp_path)
    assert trace.run_trace_bench(replace(SMALL)) == 0
    (line,) = (tmp_path / "trace.jsonl").read_text().splitlines()
    assert {"efficient", "flash", "sdpa"} <= set(json.loads(line))
    assert json.loads(line)["flash"]["mask_bytes_per_layer"] == 0
