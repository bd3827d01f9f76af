"""The process that `strata bench large` limits: scores synthetic questions and prints one JSON line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.configs import LargeBenchConfig
from strata.scripts.bench.limited_process import answer_parent
from strata.scripts.bench.process_memory import peak_resident_bytes
from strata.scripts.bench.record import GIB
from strata.scripts.bench.roofline import measure_disk_rate
from strata.scripts.bench.workloads.synthetic_job import (
    checkpoint_bytes,
    make_job,
    plan_synthetic,
    run_synthetic,
)


def measure(checkpoint: Path, config: LargeBenchConfig) -> dict[str, object]:
    """Plans and runs the job; sizes in GiB, times in seconds."""
    disk_rate = measure_disk_rate(checkpoint, 2 << 30)
    job = make_job(SHAPES[config.shape], config.num_questions, config.question_size)
    sweep = plan_synthetic(
        job,
        checkpoint,
        checkpoint.parent,
        devices="cpu",
        dtype=config.dtype,
        memory_gib=config.memory_gib,
    )
    print(f"plan: {sweep.plan}", flush=True)
    run = run_synthetic(sweep, cold=True)
    assert np.isfinite(run.scores).all(), "scores are not finite"
    plan = sweep.plan
    return {
        "checkpoint_gib": checkpoint_bytes(checkpoint) / GIB,
        "peak_rss_gib": peak_resident_bytes() / GIB,
        "seconds": run.seconds,
        "predicted_s": plan.predicted_s,
        "tokens": plan.tokens,
        "tok_per_s": plan.tokens / run.seconds,
        "read_gib": plan.bytes_read / GIB,
        "disk_mb_per_s": disk_rate / 1e6,
        "weights_wait_s": run.weight_stream.weights_wait_s,
        "weights_read_s": run.weight_stream.weights_read_s,
        "planned_memory_gib": plan.memory_bytes / GIB,
        "micro_batch_tokens": plan.micro_batch_tokens,
        "resident_layers": len(plan.resident_layers),
        "bottleneck": plan.bottleneck,
        "compute_dtype": f"{plan.dtype}, linears {plan.linear}",
        "useful_tflop": len(job.questions) * job.flops / 1e12,
    }


if __name__ == "__main__":
    answer_parent(measure, LargeBenchConfig)
