"""Streamed against resident for every storage format, on random checkpoints of a shape with fewer layers.

Resident weights were decoded before the clock starts; streamed ones are read from a cold disk and decoded
layer by layer while the layer before computes. Checkpoints are made one at a time and removed.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from strata.engine.plan.shapes import SHAPES, ModelShape
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.record import GIB, print_table
from strata.scripts.bench.sweep.core import RESIDENT_GROUPS, bench_device
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


def run_formats_part(config: SweepBenchConfig) -> dict[str, object]:
    """`streamed_over_resident_<format>` of every format, and what they come from."""
    shape = replace(
        SHAPES[config.shape], num_layers=min(config.format_layers, SHAPES[config.shape].num_layers)
    )
    results: dict[str, object] = {"format_layers": shape.num_layers}
    rows = []
    for name in FORMATS:
        checkpoint = make_format(shape, config.folder / f"format-{name}", name)
        try:
            rounds = [measure_format(config, shape, checkpoint) for _ in range(config.format_rounds)]
        finally:
            shutil.rmtree(checkpoint)
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
    print_table(rows)
    return results


def make_format(shape: ModelShape, folder: Path, name: str) -> Path:
    """A random checkpoint in a format."""
    if name in PLAIN:
        return make_random_checkpoint(shape, folder, dtype=PLAIN[name])
    return make_random_checkpoint(shape, folder, storage=next(known for known in STORAGES if known == name))


def measure_format(config: SweepBenchConfig, shape: ModelShape, checkpoint: Path) -> dict[str, ProbedRun]:
    """One round of a format: resident, then streamed; both compute in the plain bench's dtype."""
    job = make_job(shape, config.num_questions, config.question_size)
    common: dict[str, Any] = {"devices": bench_device(config), "dtype": config.format_dtype}
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
