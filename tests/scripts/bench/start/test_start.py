"""The bench of starts: what it measures are starts of this strata, and a first layer comes after the help."""

from __future__ import annotations

from strata.scripts.bench.start.config import StartBenchConfig
from strata.scripts.bench.start.start import measure_starts


def test_figures_are_in_the_order_in_which_things_happen():
    figures = measure_starts(StartBenchConfig(rounds=1))
    assert 0 < figures["help_s"] <= figures["help_slowest_s"]
    # torch and transformers are loaded in between.
    assert figures["help_s"] < figures["first_layer_s"] < figures["run_s"]
