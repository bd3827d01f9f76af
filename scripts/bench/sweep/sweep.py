"""`strata bench sweep`: the parts of the bench, one after another, and one JSON object of all their figures.

A part is a function of the settings that returns figures by name; the module of each says what it measures
and how.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment, run_parts
from strata.scripts.bench.sweep.agreement import run_agreement_part
from strata.scripts.bench.sweep.core import run_core_part
from strata.scripts.bench.sweep.formats import run_formats_part
from strata.scripts.bench.sweep.peers import run_peers_part
from strata.scripts.bench.sweep.throttle import run_throttle_part
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint

Part = Callable[[SweepBenchConfig], dict[str, object]]
PARTS: dict[str, Part] = {
    "core": run_core_part,
    "formats": run_formats_part,
    "throttle": run_throttle_part,
    "agreement": run_agreement_part,
    "peers": run_peers_part,
}


def run_sweep_bench(config: SweepBenchConfig) -> int:
    """Runs the parts, prints tables and one JSON line, and appends it to the results."""
    print_environment()
    config.folder.mkdir(parents=True, exist_ok=True)
    figures = run_parts(PARTS, config.parts or tuple(PARTS), config)
    append_result("sweep", figures | {"config": asked_settings(config)}, RESULTS)
    return 0


def make_checkpoint(config: SweepBenchConfig) -> Path:
    """The random checkpoint of the config's shape, made when it is not there."""
    return make_random_checkpoint(
        SHAPES[config.shape], config.folder / (config.storage or config.shape), storage=config.storage
    )
