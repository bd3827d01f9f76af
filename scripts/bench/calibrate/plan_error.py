"""`strata bench plan-error`: predicted against measured seconds of the sweep, a configuration a line.

Predictions come from the plan that `strata plan --profile` would make with this machine's calibration; only
the disk is measured anew, or is the rate of a throttled source. A run's checkpoint is not in the page cache.
All configurations run on the CPU.
The forecast for two T4 is added to the result: it needs no machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from strata.engine.config import PlanConfig
from strata.engine.machine.devices import DTYPES
from strata.engine.machine.measure import measure_disk_rate, measure_gemm_rate
from strata.engine.machine.profile import MachineProfile, load_profile, save_profile
from strata.engine.plan.shapes import TINYLLAMA_1B
from strata.engine.types import InputError
from strata.engine.weights.byte_sources import ByteSource, FileSource, ThrottledSource
from strata.engine.weights.checkpoint import open_checkpoint
from strata.scripts.bench.configs import PlanErrorConfig, QuestionSize
from strata.scripts.bench.record import (
    RESULTS,
    append_result,
    asked_settings,
    print_environment,
    print_table,
    run_identity,
)
from strata.scripts.bench.steps import keep_steps
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.random_storage import Storage
from strata.scripts.bench.workloads.synthetic_job import SyntheticRun, make_job, plan_synthetic, run_synthetic
from strata.scripts.plan_shape import plan_shape

OPTION_TOKENS, NUM_OPTIONS = 40, 5
DISK_SAMPLE_BYTES = 256 << 20
KEPT = "plan-error.partial.json"


@dataclass(frozen=True, kw_only=True)
class SweepCase:
    """One configuration of the sweep; None leaves a choice to the planner.

    `bytes_per_s` throttles the source; `resident` keeps all layers in memory or none; `storage` is the format
    of the checkpoint, bfloat16 without one.
    """

    name: str
    num_questions: int
    prefix_tokens: int = 1200
    storage: Storage | None = None
    dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    devices: str = "cpu"
    resident: bool = False
    num_groups: int = 1
    hidden_store: Literal["ram", "disk"] = "ram"
    micro_batch_tokens: int | None = None
    bytes_per_s: float | None = None


CASES = (
    SweepCase(name="resident", num_questions=6, resident=True),
    SweepCase(name="streamed", num_questions=6),
    SweepCase(name="streamed, short prefixes", num_questions=24, prefix_tokens=100),
    SweepCase(name="streamed, micro-batches of 128", num_questions=4, micro_batch_tokens=128),
    SweepCase(name="hidden states on disk", num_questions=6, hidden_store="disk"),
    SweepCase(name="two groups, streamed", num_questions=6, num_groups=2),
    SweepCase(name="two groups, resident", num_questions=6, num_groups=2, resident=True),
    SweepCase(name="two lanes", num_questions=6, devices="cpu,cpu"),
    SweepCase(name="float32, streamed from bfloat16", num_questions=3, dtype="float32"),
    SweepCase(name="float32, short prefixes", num_questions=10, prefix_tokens=100, dtype="float32"),
    SweepCase(name="throttled: disk-bound", num_questions=2, bytes_per_s=50e6),
    SweepCase(name="throttled: near balance", num_questions=4, bytes_per_s=75e6),
    SweepCase(name="throttled, two groups", num_questions=2, num_groups=2, bytes_per_s=100e6),
    SweepCase(name="stored in NF4", num_questions=6, storage="nf4"),
    SweepCase(name="stored in int8", num_questions=6, storage="int8"),
    SweepCase(name="int8, stored in int8", num_questions=8, storage="int8", dtype="int8"),
    SweepCase(name="int8, streamed", num_questions=8, dtype="int8"),
    SweepCase(name="int8, resident", num_questions=8, dtype="int8", resident=True),
)


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """A configuration's seconds.

    `gemm_share` is the GEMM rate (bfloat16, or float32) around the run as a share of the calibrated one: well
    below 1, the machine was busy with something else, and the error says little.
    """

    name: str
    predicted_s: float
    measured_s: float
    bottleneck: str
    stall_s: float
    gemm_share: float

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted_s / self.measured_s - 1


def run_plan_error(config: PlanErrorConfig) -> int:
    """Runs all configurations. Returns the exit status.

    Raises:
        InputError: this machine is not calibrated, or no configuration has that name.
    """
    profile = load_profile(config.profile)
    cases = [case for case in cases_of(profile) if config.only is None or config.only in case.name]
    if not cases:
        raise InputError(f"--only: no configuration's name holds {config.only!r}")
    print_environment()
    config.folder.mkdir(parents=True, exist_ok=True)
    asked = run_identity(asked_settings(config) | {"profile": [profile.name, profile.date]})
    results = []
    with keep_steps("plan-error", config.folder / KEPT, asked, total=len(cases)) as steps:
        for case in cases:
            run = partial(measure_case, case, profile, config)
            results.append(CaseResult(**steps.run(case.name, run)))
            print(f"{case.name}: {results[-1].error:+.1%}", flush=True)
    print_table([asdict(result) | {"error": f"{result.error:+.1%}"} for result in results])
    append_result("plan_error", summarize(results, config, profile), RESULTS)
    return 0


def cases_of(profile: MachineProfile) -> list[SweepCase]:
    """The configurations that a profile has rates for: float32 in bfloat16's place where that is slow."""
    known = profile.compute
    cases = [
        replace(case, dtype="float32") if case.dtype == "bfloat16" and "bfloat16" not in known else case
        for case in CASES
    ]
    return [case for case in cases if case.dtype in known]


def make_checkpoint(case: SweepCase, config: PlanErrorConfig) -> Path:
    """The random checkpoint of a configuration, made when it is not there."""
    shape = replace(TINYLLAMA_1B, num_layers=config.num_layers)
    folder = config.folder / f"plan-error-{config.num_layers}-{case.storage or 'bf16'}"
    return make_random_checkpoint(shape, folder, storage=case.storage)


def measure_case(case: SweepCase, profile: MachineProfile, config: PlanErrorConfig) -> dict[str, Any]:
    """What `run_case` finds on the checkpoint that is made for it, as JSON."""
    return asdict(run_case(case, make_checkpoint(case, config), profile, config))


def run_case(
    case: SweepCase, checkpoint: Path, profile: MachineProfile, config: PlanErrorConfig
) -> CaseResult:
    """Plans and sweeps a configuration; the median of its rounds counts."""
    fast = "bfloat16" if "bfloat16" in profile.compute else "float32"
    measured, probes = [], [probe_gemm(DTYPES[fast])]
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory(dir=config.folder) as folder:
            run = plan_case(case, checkpoint, profile, Path(folder))
            measured.append(run_synthetic(run, open_source(case), cold=True).sweep_s)
        probes.append(probe_gemm(DTYPES[fast]))
    plan = run.plan
    return CaseResult(
        name=case.name,
        predicted_s=plan.predicted_s,
        measured_s=median(measured),
        bottleneck=plan.bottleneck,
        stall_s=plan.stall_s,
        gemm_share=min(probes) / profile.compute[fast].gemm_flop_per_s,
    )


def probe_gemm(dtype: torch.dtype) -> float:
    """The GEMM rate of the CPU at this moment, FLOP/s."""
    return measure_gemm_rate(torch.device("cpu"), dtype, TINYLLAMA_1B.hidden_size)


def plan_case(case: SweepCase, checkpoint: Path, profile: MachineProfile, folder: Path) -> SyntheticRun:
    """The job of a configuration, planned with the profile and the disk as it is now."""
    opened = open_checkpoint(checkpoint)
    shape = replace(TINYLLAMA_1B, num_layers=opened.num_layers)
    size = QuestionSize(
        prefix_tokens=case.prefix_tokens, option_tokens=OPTION_TOKENS, num_options=NUM_OPTIONS
    )
    file = opened.require("norm.weight").parts[0][0].file
    disk = case.bytes_per_s or measure_disk_rate(file, DISK_SAMPLE_BYTES)
    here = folder / "profile.json"
    save_profile(replace(profile, disk_bytes_per_s=disk, cached_bytes_per_s=None), here)
    return plan_synthetic(
        make_job(shape, case.num_questions, size),
        checkpoint,
        folder,
        profile=str(here),
        devices=case.devices,
        dtype=case.dtype,
        resident_layers=opened.num_layers if case.resident else 0,
        num_groups=case.num_groups,
        hidden_store=case.hidden_store,
        micro_batch_tokens=case.micro_batch_tokens,
    )


def open_source(case: SweepCase) -> ByteSource:
    """The checkpoint's files, as fast as they are or throttled."""
    return FileSource() if case.bytes_per_s is None else ThrottledSource(FileSource(), case.bytes_per_s)


def summarize(
    results: Sequence[CaseResult], config: PlanErrorConfig, profile: MachineProfile
) -> dict[str, object]:
    """What is kept of a run of the bench."""
    errors = np.abs([result.error for result in results])
    return {
        "plan_error_median": float(np.median(errors)),
        "plan_error_max": float(errors.max()),
        "num_configurations": len(results),
        **forecast(),
        "cases": [asdict(result) | {"error": result.error} for result in results],
        "config": {
            "shape": TINYLLAMA_1B.name,
            "num_layers": config.num_layers,
            "rounds": config.rounds,
            "profile": profile.name,
            "profile_date": profile.date,
        },
    }


def forecast() -> dict[str, float]:
    """Questions an hour of a 70B model on two T4: 4,000 questions of 1,500 tokens, by the best storage."""
    profile = load_profile("kaggle-2xt4")
    plans = plan_shape(
        PlanConfig.from_flags(shape="llama2-70b", questions=Path("4000"), tokens=1500), profile
    )

    def best(compute: str) -> float:
        return max(found.questions_per_h for found in plans if found.compute == compute)

    return {
        "forecast_kaggle_2xt4_70b_q_per_h": best("float16"),
        "forecast_kaggle_2xt4_70b_int8_q_per_h": best("int8"),
    }
