"""`strata plan`: prints what a run would do."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from strata.engine.config import PlanConfig
from strata.engine.encoders.encoder import is_encoder
from strata.engine.jobs.decoder_job import DecoderJob
from strata.engine.jobs.ensemble_job import join_sharing
from strata.engine.jobs.job import Job, Session
from strata.engine.jobs.shared_sweep import SharedSweepJob
from strata.engine.machine.card_products import unmeasured_int8
from strata.engine.machine.machine import Machine
from strata.engine.machine.profile import load_profile
from strata.engine.machine.provenance import assumption_of
from strata.engine.progress import human_time
from strata.engine.results.human_units import human_bytes, human_flops
from strata.engine.run.opening import open_run
from strata.engine.run.score import group_goal_of
from strata.engine.types import InputError, RunWarnings, as_one_line
from strata.scripts.score import describe_adapter_settings


def run_plan(config: PlanConfig) -> int:
    """Prepares the job and prints its plan. Returns the exit status.

    Raises:
        InputError: neither a checkpoint with questions nor a shape, or what makes either meaningless.
    """
    config.check()
    if config.cluster.ray is not None:
        raise InputError("--ray: a plan is for one machine; expected strata score, or no --ray")
    if config.shape is not None:
        from strata.scripts.plan_shape import run_plan_shape

        return run_plan_shape(config)
    if config.model is None or config.questions is None:
        absent = "--model" if config.model is None else "--questions"
        raise InputError(f"{absent}: missing; expected --model DIR and --questions FILE, or --shape")
    if is_encoder(config.model):
        raise InputError(f"--model: {config.model} is an encoder, which has no sweep; expected a decoder")
    warnings = RunWarnings(strict=config.strict)
    session = Session(warnings=warnings, overrides=config.plan, folder=config.out)
    with open_run(config, session, config.profile) as (questions, scorer):
        job = scorer.prepare(scorer.render(questions, str(config.questions)), group_goal_of(config))
        console = Console(highlight=False)
        parts = parts_of_sweep(job)
        console.print(tabulate_plan(parts))
        for adapter, taken in config.settings_of_adapters().items():
            if taken:
                console.print(describe_adapter_settings(str(adapter), taken), markup=False, soft_wrap=True)
        assumption = _assumption(config, parts[0].machine)
        if assumption:
            warnings.say(f"before it is measured, take the prediction for a guess: {assumption}")
    for line in warnings.lines():
        print(as_one_line(f"warning: {line}"), file=sys.stderr)
    return 0


def parts_of_sweep(job: Job) -> Sequence[DecoderJob]:
    """The jobs that a sweep does: one, or of members that are asked differently one each."""
    parts = job.jobs if isinstance(job, SharedSweepJob) else [job]
    return [part for part in parts if isinstance(part, DecoderJob)]


def _assumption(config: PlanConfig, machine: Machine) -> str | None:
    """What the plan rests on that nobody has measured."""
    if config.profile:
        return assumption_of(load_profile(config.profile), machine.computes_in)
    if machine.on_cpu or machine.linear != "int8":
        return None
    return unmeasured_int8([torch.cuda.get_device_name(torch.device(name)) for name in machine.devices])


def tabulate_plan(parts: Sequence[DecoderJob]) -> Table:
    """One row a decision or prediction, of the jobs of a sweep."""
    heads = ", ".join(dict.fromkeys(part.opened.head.name for part in parts))
    table = Table(title=f"{len(parts[0].prompts)} question(s), head {heads}", title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("plan")
    for name, text in plan_rows(parts):
        table.add_row(name, text)
    return table


def plan_rows(parts: Sequence[DecoderJob]) -> list[tuple[str, str]]:
    """Name and text of every row; the plan of each part is that of the whole sweep."""
    job, sharing = parts[0], join_sharing([part.prefix_sharing for part in parts])
    assert sharing is not None, "decoders share prefixes"
    plan, num_layers, machine = job.sweep.plan, job.opened.model.checkpoint.num_layers, job.machine
    budgets, saved = machine.budgets, sharing.tokens_per_option_run / sharing.trie_nodes
    return [
        ("model", job.opened.model.checkpoint.path.resolve().name),
        ("devices, dtype", f"{', '.join(plan.devices)}; {plan.dtype}{' and int8' * (plan.linear == 'int8')}"),
        ("tokens", f"{plan.tokens:,} ({saved:.1f}x fewer than one path at a time)"),
        ("groups", f"{plan.num_groups} sweep(s) over the weights"),
        ("micro-batch", f"{plan.micro_batch_tokens:,} tokens"),
        ("layers", f"{num_layers}{'' if job.opened.model.normalizes else ', without the final norm'}"),
        ("resident layers", describe_residency(len(plan.resident_layers), num_layers)),
        ("hidden states in", plan.hidden_store),
        ("bytes read", f"{plan.bytes_read:,} ({human_bytes(plan.bytes_read)})"),
        ("work (FLOPs)", human_flops(plan.flops)),
        (
            "memory a device",
            f"{human_bytes(plan.memory_bytes)} of {human_bytes(budgets.device_bytes)}",
        ),
        ("memory in RAM", f"{human_bytes(plan.host_bytes)} of {human_bytes(budgets.host_bytes)}"),
        ("rates", plan.rates_from),
        (
            "GEMM rate, disk rate",
            f"{human_flops(machine.rates.gemm_flop_per_s)}/s a device, {_mb(machine.rates.disk_bytes_per_s)}",
        ),
        ("compute, reading", f"{human_time(plan.compute_s)}, {human_time(plan.read_s)}"),
        (
            "decoding, copies, store",
            ", ".join(human_time(seconds) for seconds in (plan.decode_s, plan.copy_s, plan.store_s)),
        ),
        ("predicted", human_time(plan.predicted_s)),
        ("bottleneck", plan.bottleneck),
    ]


def describe_residency(num_resident: int, num_layers: int) -> str:
    """How many layers stay in memory."""
    return "all" if num_resident == num_layers else f"{num_resident} of {num_layers}, the rest streamed"


def _mb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:,.0f} MB/s"
