"""Strata resident, streamed and in int8 against the GEMM roofline and two Hugging Face loops.

Every round runs each kind once, in turn. A resident run is two groups of questions, of which the second
counts, since its weights are in memory by then, as they are for the loops. A streamed run starts with the
page cache of the checkpoint dropped and counts whole, its first layer's read included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.engine.machine.devices import resolve_devices
from strata.engine.plan.shapes import SHAPES, ModelShape
from strata.engine.results.peak_memory import PeakMemory
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.record import GIB, print_table
from strata.scripts.bench.roofline import measure_disk_rate
from strata.scripts.bench.steps import BenchSteps
from strata.scripts.bench.sweep.probes import ProbedRun, Prober, make_prober
from strata.scripts.bench.workloads.baselines import hf_dynamic_cache, hf_naive, load_hf_model
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.synthetic_job import (
    SyntheticJob,
    SyntheticRun,
    checkpoint_bytes,
    make_job,
    plan_synthetic,
    run_synthetic,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESIDENT_GROUPS = 2
SLACK = 1.02
"""Of a budget over what a plan says that it takes."""
NUM_KINDS = 5
"""Kinds of run in a round."""
UNKEPT = BenchSteps()
"""For a part that is run alone."""


def run_core_part(config: SweepBenchConfig, steps: BenchSteps = UNKEPT) -> dict[str, object]:
    """Runs the rounds, prints a table, and returns the figures."""
    shape, checkpoint = bench_shape(config), bench_checkpoint(config)
    disk_rate = measure_disk_rate(checkpoint, 1 << 30)
    print(f"checkpoint {checkpoint_bytes(checkpoint) / GIB:.2f} GiB, disk {disk_rate / 1e6:.0f} MB/s")
    job = make_job(shape, config.num_questions, config.question_size)
    plans = plan_runs(config, job, checkpoint)
    plan = plans["resident"].plan
    prober = make_prober(shape, plan, job.flops)
    with PeakMemory(0.002) as memory:
        first = run_synthetic(plans["streamed"], cold=True)
    model = load_hf_model(checkpoint, dtype=prober.dtype, device=prober.device)
    difference = rms(hf_dynamic_cache(model, job.questions[:1]).scores - first.scores[:1])
    rounds = [
        run_round(config, job, plans, prober, model, steps, f"core round {number}")
        for number in range(config.rounds)
        if number == 0 or steps.has_time(f"core round {number} resident")
    ]
    naive_questions = job.questions[: config.num_naive_questions]
    naive = probe_step(
        steps, "core naive", lambda: prober.probe(lambda: hf_naive(model, naive_questions).median_s)
    )
    print_rounds([*rounds, {"naive": naive}])
    return {
        **compare(rounds, naive),
        "streamed_peak_rss_gib": memory.peak_bytes / GIB,
        "budget_gib": plans["streamed"].config.machine.memory_gib,
        "num_layers": shape.num_layers,
        "int8_computed_in": plans["int8"].plan.linear,
        "disk_mb_per_s": disk_rate / 1e6,
        "streamed_wait_s": first.weight_stream.weights_wait_s,
        "rms_difference_from_dynamic_cache": difference,
        "rounds": [{name: asdict(run) for name, run in one.items()} for one in (*rounds, {"naive": naive})],
        "micro_batch_tokens": plan.micro_batch_tokens,
        "dtype": plan.dtype,
        "device": str(prober.device),
        "num_lanes": prober.num_lanes,
    }


def plan_runs(config: SweepBenchConfig, job: SyntheticJob, checkpoint: Path) -> dict[str, SyntheticRun]:
    """The planned sweep of each kind of run of ours."""
    common: dict[str, Any] = {
        "devices": bench_devices(config),
        "micro_batch_tokens": config.micro_batch_tokens,
    }
    resident = {"resident_layers": bench_shape(config).num_layers, "num_groups": RESIDENT_GROUPS}
    streamed = {"memory_gib": streamed_gib(config, job, checkpoint), "resident_layers": 0}
    settings: dict[str, dict[str, Any]] = {
        "resident": {**resident},
        "streamed": {**streamed},
        "int8": {**resident, "dtype": "int8"},
        "int8_streamed": {**streamed, "dtype": "int8"},
    }
    return {
        name: plan_synthetic(job, checkpoint, config.folder, **common, **kind)
        for name, kind in settings.items()
    }


def streamed_gib(config: SweepBenchConfig, job: SyntheticJob, checkpoint: Path) -> float:
    """Budget of a streamed run: what was asked for, or a quarter of the checkpoint.

    Where that is too little for two layers as they are computed with (stored in 16 bits, computed in 32), it
    is what a sweep takes that streams them all.
    """
    if config.memory_gib:
        return config.memory_gib
    settings: dict[str, Any] = {
        "devices": bench_devices(config),
        "micro_batch_tokens": config.micro_batch_tokens,
    }
    plan = plan_synthetic(job, checkpoint, config.folder, **settings, resident_layers=0, num_groups=1).plan
    needed = SLACK * max(plan.memory_bytes, plan.host_bytes)
    return max(checkpoint_bytes(checkpoint) / 4, needed) / GIB


def run_round(
    config: SweepBenchConfig,
    job: SyntheticJob,
    plans: dict[str, SyntheticRun],
    prober: Prober,
    model: PreTrainedModel,
    steps: BenchSteps,
    name: str,
) -> dict[str, ProbedRun]:
    """One round: every kind of run once, each a step."""
    per_group = len(job.questions) / RESIDENT_GROUPS

    def second_group_s(name: str) -> float:
        return run_synthetic(plans[name]).group_s[-1] / per_group

    def cold_s(name: str) -> float:
        return run_synthetic(plans[name], cold=True).seconds / len(job.questions)

    few = job.questions[: config.num_dynamic_questions]
    runs: dict[str, Callable[[], float]] = {
        "resident": lambda: second_group_s("resident"),
        "streamed": lambda: cold_s("streamed"),
        "int8": lambda: second_group_s("int8"),
        "int8_streamed": lambda: cold_s("int8_streamed"),
        "dynamic_cache": lambda: hf_dynamic_cache(model, few).median_s,
    }
    return {
        kind: probe_step(steps, f"{name} {kind}", partial(prober.probe, run)) for kind, run in runs.items()
    }


def probe_step(steps: BenchSteps, name: str, probe: Callable[[], ProbedRun]) -> ProbedRun:
    """A probed run as a step."""
    return ProbedRun(**steps.run(name, lambda: asdict(probe())))


def compare(rounds: list[dict[str, ProbedRun]], naive: ProbedRun) -> dict[str, float]:
    """Shares of the roofline and their ratios, medians over the rounds."""

    def share(name: str) -> float:
        return median(one[name].roofline_share for one in rounds)

    def over(name: str, other: str) -> float:
        return median(one[name].roofline_share / one[other].roofline_share for one in rounds)

    return {
        "resident_over_roofline": share("resident"),
        "streamed_over_roofline": share("streamed"),
        "dynamic_cache_over_roofline": share("dynamic_cache"),
        "resident_over_naive": share("resident") / naive.roofline_share,
        "resident_over_dynamic_cache": over("resident", "dynamic_cache"),
        "streamed_over_resident": over("streamed", "resident"),
        "int8_over_bf16": over("int8", "resident"),
        "int8_over_best_float": over("int8", "resident"),
        "int8_streamed_over_resident": over("int8_streamed", "int8"),
        "int8_over_dynamic_cache": over("int8", "dynamic_cache"),
        "largest_drift": max(run.drift for one in rounds for run in (*one.values(), naive)),
    }


def print_rounds(rounds: list[dict[str, ProbedRun]]) -> None:
    """One row a run of a round."""
    print_table(
        [
            {
                "round": number,
                "run": name,
                "s a question": run.seconds,
                "GEMM GFLOP/s": run.gemm_flop_per_s / 1e9,
                "of roofline": run.roofline_share,
            }
            for number, one in enumerate(rounds)
            for name, run in one.items()
        ]
    )


def bench_shape(config: SweepBenchConfig) -> ModelShape:
    """The shape with the layers that are asked for."""
    shape = SHAPES[config.shape]
    return replace(shape, num_layers=min(config.num_layers or shape.num_layers, shape.num_layers))


def bench_checkpoint(config: SweepBenchConfig) -> Path:
    """The random checkpoint of that shape, made when it is not there."""
    shape = bench_shape(config)
    is_whole = shape == SHAPES[config.shape]
    name = config.shape if is_whole else f"{config.shape}-{shape.num_layers}-layers"
    return make_random_checkpoint(shape, config.folder / name)


def bench_device(config: SweepBenchConfig) -> str:
    """One device: what was asked for, or the first that `auto` finds."""
    return resolve_devices(config.device)[0]


def bench_devices(config: SweepBenchConfig) -> str:
    """What `--devices` is: of a CPU that was not asked for, the planner chooses the lanes."""
    return "auto" if config.device == "auto" and bench_device(config) == "cpu" else bench_device(config)


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(values**2)))
