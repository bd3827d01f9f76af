"""What to say when not even the smallest micro-batches of a sweep fit."""

from __future__ import annotations

from strata.engine.memory_errors import first_sentence
from strata.engine.plan.sweep_job import SweepJob
from strata.engine.sweep.lane_worker import LEAST_TOKENS


def explain_halvings(job: SweepJob, error: BaseException) -> str:
    """One line: what ran out, and the flags of the smallest run there is."""
    plan = job.plan
    is_cut = job.tree.tree_starts is None
    settings = {
        "devices": plan.on_cpu and len(plan.devices) > 1 and "cpu",
        "micro-batch-tokens": is_cut and plan.micro_batch_tokens > LEAST_TOKENS and LEAST_TOKENS,
        "resident-layers": bool(plan.resident_layers) and "0",
        "hidden-store": plan.hidden_store != "disk" and "disk",
        "num-groups": 2 * plan.num_groups,
    }
    smallest = " ".join(f"--{flag} {setting}" for flag, setting in settings.items() if setting)
    tried = f"micro-batches halved down to {LEAST_TOKENS} tokens" if is_cut else "questions computed whole"
    return (
        f"memory ran out ({first_sentence(error)}), with {tried}; "
        f"expected more free memory, or the smallest run there is: {smallest}"
    )
