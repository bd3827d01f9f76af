"""Streamed against resident for every storage format, on random checkpoints of a shape with fewer layers.

Resident weights were decoded before the clock starts; streamed ones are read from a cold disk and decoded
layer by layer while the layer before computes. Checkpoints are made one at a time and removed.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from strata.engine.machine.devices import resolve_dtype
from strata.engine.plan.shapes import ModelShape
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.record import GIB, print_table
from strata.scripts.bench.steps import BenchSteps
from strata.scripts.bench.sweep.core import RESIDENT_GROUPS, UNKEPT, bench_device, bench_devices, bench_shape
from strata.scripts.bench.sweep.probes import ProbedRun, make_prober
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.random_storage import STORAGES
from strata.scripts.bench.workloads.synthetic_job import (
    checkpoint_bytes,
    make_job,
    plan_synthetic,
    run_synthetic,
)

PLAIN = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
FORMATS = (*PLAIN, *STORAGES)


def run_formats_part(config: SweepBenchConfig, steps: BenchSteps = UNKEPT) -> dict[str, object]:
    """`streamed_over_resident_<format>` of every format, and what they come from."""
    whole = bench_shape(config)
    shape = replace(whole, num_layers=min(config.format_layers, whole.num_layers))
    results: dict[str, object] = {"format_layers": shape.num_layers}
    rows = []
    for name in FORMATS:
        if not steps.has_time(f"format {name}"):
            print(f"format {name}: left out, {config.minutes:g} minutes are over (--minutes)")
            continue
        kept = steps.run(f"format {name}", partial(measure_rounds, config, shape, name))
        rounds = [{run: ProbedRun(**found) for run, found in one.items()} for one in kept]
        ratios = [one["streamed"].roofline_share / one["resident"].roofline_share for one in rounds]
        results[f"streamed_over_resident_{name}"] = median(ratios)
        results[f"format_rounds_{name}"] = [
            {run: asdict(found) for run, found in one.items()} for one in rounds
        ]
        rows.append(
            {
                "format": name,
                "streamed of roofline": median(one["streamed"].roofline_share for one in rounds),
                "resident of roofline": median(one["resident"].roofline_share for one in rounds),
                "streamed / resident": median(ratios),
            }
        )
        print_table(rows[-1:])
    if rows:
        print_table(rows)
    return results


def measure_rounds(config: SweepBenchConfig, shape: ModelShape, name: str) -> list[dict[str, dict[str, Any]]]:
    """All rounds of a format, on a checkpoint that is made for it."""
    checkpoint = make_format(shape, config.folder / f"format-{name}", name)
    try:
        rounds = [measure_format(config, shape, checkpoint) for _ in range(config.format_rounds)]
    finally:
        shutil.rmtree(checkpoint)
    return [{run: asdict(found) for run, found in one.items()} for one in rounds]


def make_format(shape: ModelShape, folder: Path, name: str) -> Path:
    """A random checkpoint in a format."""
    if name in PLAIN:
        return make_random_checkpoint(shape, folder, dtype=PLAIN[name])
    return make_random_checkpoint(shape, folder, storage=next(known for known in STORAGES if known == name))


def measure_format(config: SweepBenchConfig, shape: ModelShape, checkpoint: Path) -> dict[str, ProbedRun]:
    """One round of a format: resident, then streamed; both compute in the plain bench's dtype."""
    job = make_job(shape, config.num_questions, config.question_size)
    device = bench_device(config)
    # All in one dtype, also what is stored in float32.
    dtype = resolve_dtype(config.format_dtype, torch.bfloat16, (device,))
    common: dict[str, Any] = {"devices": bench_devices(config), "dtype": str(dtype).removeprefix("torch.")}
    common |= {"micro_batch_tokens": config.micro_batch_tokens}
    resident = plan_synthetic(
        job, checkpoint, config.folder, **common, resident_layers=shape.num_layers, num_groups=RESIDENT_GROUPS
    )
    streamed = plan_synthetic(job, checkpoint, config.folder, **common, resident_layers=0, num_groups=1)
    plan = resident.plan
    prober = make_prober(shape, plan, job.flops)
    per_group = len(job.questions) / RESIDENT_GROUPS
    size_gib = checkpoint_bytes(checkpoint) / GIB
    print(f"{checkpoint.name}: {size_gib:.2f} GiB, computed in {plan.dtype}")
    return {
        "resident": prober.probe(lambda: run_synthetic(resident).group_s[-1] / per_group),
        "streamed": prober.probe(lambda: run_synthetic(streamed, cold=True).seconds / len(job.questions)),
    }
