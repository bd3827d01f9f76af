"""`strata plan`: prints what a run would do."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from strata.engine.job import PhaseTimer, ScoringJob, prepare_job
from strata.engine.machine import GIB
from strata.engine.score_config import PlanConfig
from strata.engine.types import RunWarnings


def run_plan(config: PlanConfig) -> int:
    """Prepares the job and prints its plan. Returns the exit status."""
    warnings = RunWarnings(strict=config.strict)
    job = prepare_job(config, warnings, PhaseTimer())
    console = Console(highlight=False)
    console.print(tabulate_plan(job))
    for line in warnings.lines():
        console.print(f"warning: {line}", markup=False, soft_wrap=True)
    return 0


def tabulate_plan(job: ScoringJob) -> Table:
    """One row a decision or prediction."""
    table = Table(
        title=f"{len(job.prompts)} questions, head {job.head}, {job.config.model}", title_justify="left"
    )
    table.add_column("what", no_wrap=True)
    table.add_column("plan")
    for name, text in plan_rows(job):
        table.add_row(name, text)
    return table


def plan_rows(job: ScoringJob) -> list[tuple[str, str]]:
    """Name and text of every row."""
    plan, num_layers = job.plan, job.checkpoint.num_layers
    saved = job.tokens_per_option_run / job.tree.num_tokens
    return [
        ("devices, dtype", f"{', '.join(plan.devices)}; {plan.dtype}"),
        ("tokens", f"{plan.tokens:,} ({saved:.1f}x fewer than one path at a time)"),
        ("groups", f"{plan.num_groups} sweep(s) over the weights"),
        ("micro-batch", f"{plan.micro_batch_tokens:,} tokens"),
        ("resident layers", f"{len(plan.resident_layers)} of {num_layers}, the rest streamed"),
        ("hidden states in", plan.hidden_store),
        ("bytes read", f"{plan.bytes_read:,} ({plan.bytes_read / GIB:.2f} GiB)"),
        ("FLOPs", f"{plan.flops:.3e}"),
        ("memory a device", f"{plan.memory_bytes / GIB:.2f} of {job.budgets.device_bytes / GIB:.2f} GiB"),
        ("memory in RAM", f"{plan.host_bytes / GIB:.2f} of {job.budgets.host_bytes / GIB:.2f} GiB"),
        (
            "GEMM rate, disk rate",
            f"{job.rates.gemm_flop_per_s / 1e12:.2f} TFLOP/s, {_mb(job.rates.disk_bytes_per_s)}",
        ),
        ("compute, reading", f"{plan.compute_s:.1f} s, {plan.read_s:.1f} s"),
        ("predicted", f"{plan.predicted_s:.1f} s"),
        ("bottleneck", plan.bottleneck),
    ]


def _mb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:,.0f} MB/s"
