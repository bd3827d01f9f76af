"""Amounts as people say them."""

from __future__ import annotations

import pytest

from strata.engine.results.human_units import human_bytes, human_flops


@pytest.mark.parametrize(
    ("flops", "told"),
    [
        (0, "0.00 FLOP"),
        (999, "999 FLOP"),
        (1.4e9, "1.40 GFLOP"),
        (999.6e9, "1.00 TFLOP"),
        (66.04e9, "66.0 GFLOP"),
        (3.5e15, "3.50 PFLOP"),
        (5e21, "5000 EFLOP"),
    ],
)
def test_flops(flops, told):
    assert human_flops(flops) == told


@pytest.mark.parametrize(
    ("num_bytes", "told"),
    [(7, "7 bytes"), (4096, "4.00 KiB"), (12.34 * 2**30, "12.3 GiB"), (1023 * 2**20, "1.00 GiB")],
)
def test_bytes(num_bytes, told):
    assert human_bytes(num_bytes) == told
