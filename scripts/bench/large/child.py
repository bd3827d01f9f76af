"""The process that `strata bench large` limits: scores synthetic questions and prints one JSON line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.process_memory import peak_resident_bytes
from strata.scripts.bench.roofline import measure_disk_rate
from strata.scripts.bench.workloads.synthetic_job import (
    checkpoint_bytes,
    make_job,
    plan_synthetic,
    run_synthetic,
)

GIB = 1 << 30


def main(checkpoint: Path, settings: dict) -> dict:
    """Plans and runs the job; sizes in GiB, times in seconds."""
    shape = SHAPES[settings["shape"]]
    size = {key: settings[key] for key in ("prefix_tokens", "option_tokens", "num_options")}
    disk_rate = measure_disk_rate(checkpoint, 2 << 30)
    job = make_job(shape, settings["num_questions"], **size)
    sweep = plan_synthetic(
        job,
        checkpoint,
        checkpoint.parent,
        devices="cpu",
        dtype=settings["dtype"],
        memory_gib=settings["memory_gib"],
    )
    print(f"plan: {sweep.plan}", flush=True)
    run = run_synthetic(job, sweep, checkpoint.parent, cold=True)
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
        "weights_wait_s": run.swept.weights_wait_s,
        "weights_read_s": run.swept.weights_read_s,
        "planned_memory_gib": plan.memory_bytes / GIB,
        "micro_batch_tokens": plan.micro_batch_tokens,
        "resident_layers": len(plan.resident_layers),
        "bottleneck": plan.bottleneck,
        "compute_dtype": f"{plan.dtype}, linears {plan.linear}",
        "useful_tflop": len(job.questions) * job.flops / 1e12,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]))))
