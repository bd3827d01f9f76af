"""Strata resident, streamed and in int8 against the GEMM roofline and two Hugging Face loops.

Every round runs each kind once, in turn. A resident run is two groups of questions, of which the second
counts, since its weights are in memory by then, as they are for the loops. A streamed run starts with the
page cache of the checkpoint dropped and counts whole, its first layer's read included.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.engine.machine.devices import resolve_devices
from strata.engine.plan.shapes import SHAPES
from strata.engine.results.peak_memory import PeakMemory
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.record import GIB, print_table
from strata.scripts.bench.roofline import measure_disk_rate
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


def run_core_part(config: SweepBenchConfig) -> dict[str, object]:
    """Runs the rounds, prints a table, and returns the figures."""
    shape = SHAPES[config.shape]
    checkpoint = make_random_checkpoint(shape, config.folder / config.shape)
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
    rounds = [run_round(config, job, plans, prober, model) for _ in range(config.rounds)]
    naive_questions = job.questions[: config.num_naive_questions]
    naive = prober.probe(lambda: hf_naive(model, naive_questions).median_s)
    print_rounds([*rounds, {"naive": naive}])
    return {
        **compare(rounds, naive),
        "streamed_peak_rss_gib": memory.peak_bytes / GIB,
        "budget_gib": streamed_gib(config, checkpoint),
        "disk_mb_per_s": disk_rate / 1e6,
        "streamed_wait_s": first.weight_stream.weights_wait_s,
        "rms_difference_from_dynamic_cache": difference,
        "rounds": [{name: asdict(run) for name, run in one.items()} for one in (*rounds, {"naive": naive})],
        "micro_batch_tokens": plan.micro_batch_tokens,
        "dtype": plan.dtype,
        "device": str(prober.device),
    }


def plan_runs(config: SweepBenchConfig, job: SyntheticJob, checkpoint: Path) -> dict[str, SyntheticRun]:
    """The planned sweep of each kind of run of ours."""
    common: dict[str, Any] = {
        "devices": bench_device(config),
        "micro_batch_tokens": config.micro_batch_tokens,
    }
    resident = {"resident_layers": SHAPES[config.shape].num_layers, "num_groups": RESIDENT_GROUPS}
    streamed = {"memory_gib": streamed_gib(config, checkpoint), "resident_layers": 0}
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


def streamed_gib(config: SweepBenchConfig, checkpoint: Path) -> float:
    """Budget of a streamed run: what was asked for, or a quarter of the checkpoint."""
    return config.memory_gib or checkpoint_bytes(checkpoint) / 4 / GIB


def run_round(
    config: SweepBenchConfig,
    job: SyntheticJob,
    plans: dict[str, SyntheticRun],
    prober: Prober,
    model: PreTrainedModel,
) -> dict[str, ProbedRun]:
    """One round: every kind of run once."""
    per_group = len(job.questions) / RESIDENT_GROUPS

    def second_group_s(name: str) -> float:
        return run_synthetic(plans[name]).group_s[-1] / per_group

    def cold_s(name: str) -> float:
        return run_synthetic(plans[name], cold=True).seconds / len(job.questions)

    few = job.questions[: config.num_dynamic_questions]
    return {
        "resident": prober.probe(lambda: second_group_s("resident")),
        "streamed": prober.probe(lambda: cold_s("streamed")),
        "int8": prober.probe(lambda: second_group_s("int8")),
        "int8_streamed": prober.probe(lambda: cold_s("int8_streamed")),
        "dynamic_cache": prober.probe(lambda: hf_dynamic_cache(model, few).median_s),
    }


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


def bench_device(config: SweepBenchConfig) -> str:
    """One device: what was asked for, or the first that `auto` finds."""
    return resolve_devices(config.device)[0]


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(values**2)))
