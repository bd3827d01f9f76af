"""`strata bench sweep`: the parts of the bench, one after another, and one JSON object of all their figures.

A part is a function of the settings that returns figures by name; the module of each says what it measures
and how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.peers.runner import PEERS
from strata.scripts.bench.record import (
    RESULTS,
    append_result,
    asked_settings,
    print_environment,
    run_identity,
    run_parts,
)
from strata.scripts.bench.steps import keep_steps
from strata.scripts.bench.sweep.agreement import HEADS, run_agreement_part
from strata.scripts.bench.sweep.core import NUM_KINDS, bench_shape, run_core_part
from strata.scripts.bench.sweep.fitted import FittedBench, fit_bench
from strata.scripts.bench.sweep.formats import FORMATS, run_formats_part
from strata.scripts.bench.sweep.peers import DTYPES, run_peers_part
from strata.scripts.bench.sweep.throttle import PERCENTS, run_throttle_part
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint

Part = Callable[..., dict[str, object]]
KEPT = "sweep.partial.json"
SIZES = (
    "num_layers",
    "rounds",
    "num_questions",
    "num_dynamic_questions",
    "num_naive_questions",
    "peer_questions",
)
"""Settings that are fitted to the time."""
PARTS: dict[str, Part] = {
    "core": run_core_part,
    "formats": run_formats_part,
    "throttle": run_throttle_part,
    "agreement": run_agreement_part,
    "peers": run_peers_part,
}


def run_sweep_bench(config: SweepBenchConfig) -> int:
    """Runs the parts, prints tables and one JSON line, and appends it to the results.

    What an interrupted call has measured is kept in the folder, and the next one goes on from there.
    """
    print_environment()
    config.folder.mkdir(parents=True, exist_ok=True)
    path, asked = config.folder / KEPT, run_identity(asked_settings(config))
    with keep_steps("bench sweep", path, asked, total=num_steps(config), minutes=config.minutes) as steps:
        # What fits is decided once: an interrupted call goes on with the same.
        fitted = steps.run("fit", lambda: asdict_of_sizes(fit_bench(config)))
        if fitted["notice"]:
            print(fitted["notice"], flush=True)
        sized = replace(config, **fitted["sizes"])
        parts = {name: partial(part, steps=steps) for name, part in PARTS.items()}
        figures = run_parts(parts, config.parts or tuple(parts), sized)
    append_result("sweep", figures | {"config": asked_settings(sized)}, RESULTS)
    return 0


def asdict_of_sizes(fitted: FittedBench) -> dict[str, Any]:
    """What was decided, as JSON."""
    return {"notice": fitted.notice, "sizes": {name: getattr(fitted.config, name) for name in SIZES}}


def num_steps(config: SweepBenchConfig) -> int:
    """Steps of the chosen parts, at most: the bar's length."""
    counts = {
        "core": NUM_KINDS * config.rounds + 1,
        "formats": len(FORMATS),
        "throttle": len(PERCENTS) + 2,
        "agreement": len(HEADS),
        "peers": len(PEERS) + 2 * len(DTYPES),
    }
    return 1 + sum(counts[part] for part in config.parts or PARTS)


def make_checkpoint(config: SweepBenchConfig) -> Path:
    """The random checkpoint of the config's shape, made when it is not there."""
    return make_random_checkpoint(
        bench_shape(config), config.folder / (config.storage or config.shape), storage=config.storage
    )
