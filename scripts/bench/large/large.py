"""`strata bench large`: a model far bigger than its memory, scored under a hard limit.

A random checkpoint of the shape is made when the disk has room, then a child process scores a few synthetic
questions on it with a memory budget; the peak of its whole resident set, libraries included, is what counts.
"""

from __future__ import annotations

import shutil
from time import perf_counter

from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.configs import LargeBenchConfig
from strata.scripts.bench.limited_process import run_limited
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment, print_table
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint


def run_large_bench(config: LargeBenchConfig) -> int:
    """Makes the checkpoint, runs the child, prints and appends the result; removes the checkpoint."""
    print_environment()
    shape = SHAPES[config.shape]
    checkpoint = config.folder / f"{config.shape}-{config.storage or 'bf16'}"
    started = perf_counter()
    make_random_checkpoint(shape, checkpoint, storage=config.storage)
    print(f"checkpoint ready after {perf_counter() - started:.0f} s")
    try:
        measured = run_limited("strata.scripts.bench.large.child", checkpoint, config, config.limit_gib)
    finally:
        if not config.keep:
            shutil.rmtree(checkpoint)
    measured["under_limit"] = measured["peak_rss_gib"] < config.limit_gib
    print_table([{name: value for name, value in measured.items() if not isinstance(value, (dict, list))}])
    append_result("large", measured | {"config": asked_settings(config)}, RESULTS)
    return 0 if measured["under_limit"] else 1
