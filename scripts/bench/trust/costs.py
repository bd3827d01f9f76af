"""What trust costs: the known-answer probe before a run, and --deterministic in it."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from strata.engine.jobs.job import Session
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.plan.shapes import SHAPES
from strata.engine.scorer import Scorer
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.synthetic_job import (
    SyntheticJob,
    SyntheticRun,
    make_job,
    plan_synthetic,
    run_synthetic,
)

if TYPE_CHECKING:
    from pathlib import Path

    from strata.scripts.bench.trust.trust_config import TrustBenchConfig

SIZE = QuestionSize(prefix_tokens=600, option_tokens=40, num_options=5)


def measure_probe(config: TrustBenchConfig) -> dict[str, Any]:
    """Milliseconds of the probe of one model, its reads included, and how far its two sides were apart."""
    checkpoint, job = _make(config)
    found = []
    for _ in range(config.rounds + 1):
        run = plan_synthetic(job, checkpoint, config.folder, devices="cpu")
        session = Session(folder=config.folder)
        with Scorer.open(run.config.members(), run.config.machine, session=session) as scorer:
            found += scorer.check_known_answers(job.prompts)
    return {
        "probe_ms": 1000 * median(probe.seconds for probe in found[1:]),
        "probe_readout_error": max(probe.readout_error for probe in found),
    }


def measure_deterministic(config: TrustBenchConfig) -> dict[str, Any]:
    """Time with --deterministic over time without, all layers in memory after the first group."""
    checkpoint, job = _make(config)
    resident: dict[str, Any] = {"devices": "cpu", "resident_layers": config.num_layers, "num_groups": 2}
    plain = plan_synthetic(job, checkpoint, config.folder, **resident)
    overrides = PlanOverrides(deterministic=True, num_groups=2, resident_layers=config.num_layers)
    runs = {"plain": plain, "apart": replace(plain, config=replace(plain.config, plan=overrides))}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(config.rounds + 1):
        for name, run in runs.items():
            seconds[name].append(_second_group_s(run))
    medians = {name: median(times[1:]) for name, times in seconds.items()}
    return {
        "deterministic_cost": medians["apart"] / medians["plain"],
        "deterministic_s": seconds["apart"][1:],
        "plain_s": seconds["plain"][1:],
    }


def _second_group_s(run: SyntheticRun) -> float:
    """Of half the questions, when the weights are in memory."""
    return run_synthetic(run).group_s[-1]


def _make(config: TrustBenchConfig) -> tuple[Path, SyntheticJob]:
    shape = replace(SHAPES[config.shape], num_layers=config.num_layers)
    checkpoint = make_random_checkpoint(shape, config.folder / f"{config.shape}-{config.num_layers}")
    return checkpoint, make_job(shape, config.num_questions, SIZE)
