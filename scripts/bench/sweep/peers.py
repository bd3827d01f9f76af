"""strata beside its peers on the same questions: streamed, bf16 and int8; AirLLM, accelerate, llama.cpp.

Each peer runs in a separate process (see `peers/`), on the same random checkpoint; what is not installed is
left out, with the reason. strata streams everything from a cold disk under a budget of a quarter of the
checkpoint, its first layer's read included; llama.cpp holds all weights in memory. A machine's speed
drifts in the minutes that this takes, so strata is measured before its peers and after; the mean counts.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np

from strata.scripts.bench.configs import QuestionSize, SweepBenchConfig
from strata.scripts.bench.peers.exchange import PeerJob
from strata.scripts.bench.peers.runner import PEERS, measure_peer
from strata.scripts.bench.record import print_table
from strata.scripts.bench.steps import BenchSteps
from strata.scripts.bench.sweep.core import (
    UNKEPT,
    bench_checkpoint,
    bench_devices,
    bench_shape,
    streamed_gib,
)
from strata.scripts.bench.workloads.baselines import BaselineRun
from strata.scripts.bench.workloads.synthetic_job import (
    SyntheticJob,
    make_job,
    plan_synthetic,
    run_synthetic,
)

SIZE = QuestionSize(prefix_tokens=500, option_tokens=40, num_options=5)
NUM_PEER_QUESTIONS = 2
DTYPES = ("bf16", "int8")
KEYS = {
    "airllm": ("over_airllm", "int8_over_airllm"),
    "accelerate_disk": ("over_accelerate_disk", "int8_over_accelerate_disk"),
    "llama_cpp_bf16": ("over_llama_cpp_bf16", "int8_over_llama_cpp_bf16"),
    "llama_cpp_q8_0": ("over_llama_cpp_q8", "int8_over_llama_cpp_q8"),
    "llama_cpp_q4_0": ("over_llama_cpp_q4", "int8_over_llama_cpp_q4"),
}
"""A peer's seconds a question over strata's, in bf16 and in int8."""


def run_peers_part(config: SweepBenchConfig, steps: BenchSteps = UNKEPT) -> dict[str, object]:
    """Seconds a question of strata and of every peer that is installed, and their ratios."""
    checkpoint = bench_checkpoint(config)
    job = make_job(bench_shape(config), config.peer_questions, SIZE)
    rounds: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    runs: dict[str, BaselineRun] = {}
    results: dict[str, object] = {}

    def measure_ours(when: str) -> None:
        for dtype in DTYPES:
            measure = partial(strata_s, config, job, checkpoint, dtype)
            rounds[dtype].append(steps.run(f"peers: strata {dtype} {when}", measure))

    measure_ours("before")
    peer_job = PeerJob(
        checkpoint=checkpoint,
        questions=job.questions[:NUM_PEER_QUESTIONS],
        work_folder=config.folder / "peers",
    )
    for peer in PEERS:
        if not steps.has_time(f"peers: {peer}"):
            results[f"{peer}_left_out"] = f"{config.minutes:g} minutes are over (--minutes)"
            continue
        run = measure_peer(peer, peer_job, python=config.peers_python)
        steps.advance(1)
        if isinstance(run, str):
            print(f"{peer}: left out: {run}")
            results[f"{peer}_left_out"] = run
            continue
        runs[peer] = run
    if runs:
        measure_ours("after")
    ours = {dtype: mean(seconds) for dtype, seconds in rounds.items()}
    for dtype, seconds in rounds.items():
        results |= {f"strata_{dtype}_s": ours[dtype], f"strata_{dtype}_rounds_s": seconds}
    for peer, done in runs.items():
        results |= compare_with(peer, done, ours)
    print_table(
        [
            *({"who": f"strata {dtype}, streamed", "s a question": ours[dtype]} for dtype in DTYPES),
            *({"who": peer, "s a question": done.median_s} for peer, done in runs.items()),
        ]
    )
    return results | {"peers_config": asdict(SIZE) | {"peer_questions": NUM_PEER_QUESTIONS}}


def compare_with(peer: str, run: BaselineRun, ours: dict[str, float]) -> dict[str, object]:
    """A peer's seconds and how many times strata's they are."""
    bf16_key, int8_key = KEYS[peer]
    return {
        f"{peer}_s": run.median_s,
        bf16_key: run.median_s / ours["bf16"],
        int8_key: run.median_s / ours["int8"],
        f"{peer}_mean_score": float(np.mean(run.scores)),
    }


def strata_s(config: SweepBenchConfig, job: SyntheticJob, checkpoint: Path, dtype: str) -> float:
    """Seconds a question of a streamed sweep from a cold disk."""
    sweep = plan_synthetic(
        job,
        checkpoint,
        config.folder,
        devices=bench_devices(config),
        dtype="int8" if dtype == "int8" else "auto",
        memory_gib=streamed_gib(config, job, checkpoint),
        resident_layers=0,
    )
    run = run_synthetic(sweep, cold=True)
    return run.seconds / len(job.questions)
