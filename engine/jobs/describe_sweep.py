"""What run.json keeps of a planned sweep. Knows no heads and no prompts."""

from __future__ import annotations

from dataclasses import asdict

from strata.engine.machine.machine import Machine
from strata.engine.plan.sweep_job import SweepJob


def describe_sweep(sweep: SweepJob, machine: Machine) -> dict[str, object]:
    """The plan, what is swept, and the machine it is for."""
    plan, decoder = sweep.plan, sweep.model.decoders[0]
    return {
        **asdict(plan),
        "tokens_computed": plan.tokens,
        "sweep_s": plan.predicted_s,
        "members": list(sweep.members),
        "num_layers": sweep.model.checkpoint.num_layers,
        "final_norm": sweep.model.normalizes,
        "fused_modules": sorted(decoder.fused),
        "unfused_because": decoder.unfused_because,
        "num_micro_batches": sweep.num_micro_batches,
        "budgets": asdict(machine.budgets),
        "rates": asdict(machine.rates),
        **machine.describe_products(),
    }
