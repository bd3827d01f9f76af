"""A slow source, such as a network mount: the reader limited so that I/O is 50, 100, 200% of compute.

The roofline of such a run is max(useful FLOPs / GEMM rate, bytes / source rate). One more run reads twice
through a cache on local disk: its second sweep should not pay for the slow source again.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from strata.engine.weights.byte_sources import FileSource, ThrottledSource
from strata.engine.weights.read_cache import CachedSource
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.record import GIB, print_table
from strata.scripts.bench.steps import BenchSteps
from strata.scripts.bench.sweep.core import UNKEPT, bench_checkpoint, bench_devices, bench_shape
from strata.scripts.bench.sweep.probes import Prober, make_prober
from strata.scripts.bench.workloads.synthetic_job import (
    SyntheticJob,
    SyntheticRun,
    make_job,
    plan_synthetic,
    run_synthetic,
)

PERCENTS = (50, 100, 200)


def run_throttle_part(config: SweepBenchConfig, steps: BenchSteps = UNKEPT) -> dict[str, object]:
    """`throttled_<percent>_over_roofline` and the cache's gain."""
    shape, checkpoint = bench_shape(config), bench_checkpoint(config)
    job = make_job(shape, config.num_questions, config.question_size)
    common: dict[str, Any] = {
        "devices": bench_devices(config),
        "micro_batch_tokens": config.micro_batch_tokens,
    }
    sweep = plan_synthetic(job, checkpoint, config.folder, **common, resident_layers=0, num_groups=1)
    plan = sweep.plan
    prober = make_prober(shape, plan, job.flops)
    unthrottled_s = steps.run("throttle: none", lambda: run_synthetic(sweep, cold=True).seconds)
    results: dict[str, object] = {"unthrottled_s": unthrottled_s}
    rows = []
    for percent in PERCENTS:
        rate = plan.bytes_read / (unthrottled_s * percent / 100)
        if not steps.has_time(f"throttle: {percent}%"):
            print(f"I/O of {percent}%: left out, {config.minutes:g} minutes are over (--minutes)")
            continue
        found = steps.run(f"throttle: {percent}%", partial(throttled_row, config, job, sweep, prober, rate))
        row = {"I/O of compute, %": percent, **found}
        results[f"throttled_{percent}_over_roofline"] = row["of roofline"]
        rows.append(row)
    if rows:
        print_table(rows)
    if rows and steps.has_time("throttle: cache"):
        twice = plan_synthetic(job, checkpoint, config.folder, **common, resident_layers=0, num_groups=2)
        slowest = rows[-1]["source MB/s"] * 1e6
        results |= steps.run("throttle: cache", lambda: measure_cache(config, twice, slowest))
    return results | {"throttle_rows": rows}


def throttled_row(
    config: SweepBenchConfig,
    job: SyntheticJob,
    sweep: SyntheticRun,
    prober: Prober,
    rate: float,
) -> dict[str, float]:
    """One run between GEMM probes, its source throttled to a rate in bytes/s."""
    before = prober.gemm_flop_per_s()
    run = run_synthetic(sweep, ThrottledSource(FileSource(), rate), cold=True)
    gemm_rate = (before + prober.gemm_flop_per_s()) / 2
    compute_floor_s = len(job.questions) * job.flops / gemm_rate
    read_floor_s = sweep.plan.bytes_read / rate
    return {
        "source MB/s": rate / 1e6,
        "seconds": run.seconds,
        "compute floor s": compute_floor_s,
        "I/O floor s": read_floor_s,
        "of roofline": max(compute_floor_s, read_floor_s) / run.seconds,
    }


def measure_cache(config: SweepBenchConfig, sweep: SyntheticRun, rate: float) -> dict[str, object]:
    """Two sweeps from the slowest source through a cache: seconds of each."""
    folder = Path(mkdtemp(prefix="cache-", dir=config.folder))
    try:
        source = CachedSource(ThrottledSource(FileSource(), rate), folder)
        group_s = run_synthetic(sweep, source, cold=True).group_s
    finally:
        shutil.rmtree(folder)
    return {
        "cached_sweeps_s": group_s,
        "cache_first_over_second_sweep": group_s[0] / group_s[1],
        "cache_gib": source.num_bytes_kept / GIB,
    }
