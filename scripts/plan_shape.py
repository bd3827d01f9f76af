"""`strata plan --shape`: what a job on a model that is not there would take, a row a storage and dtype."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from strata.engine.config import PlanConfig
from strata.engine.machine.devices import GIB
from strata.engine.machine.machine import profiled_machine
from strata.engine.machine.profile import MachineProfile, load_profile
from strata.engine.machine.provenance import assumption_of, provenance_of
from strata.engine.model.rehearsal import build_rehearsed
from strata.engine.plan.costs import StorageFormat, shape_costs
from strata.engine.plan.planner import plan_sweep
from strata.engine.plan.shapes import JobSize, linear_kinds, read_shape, shape_workload
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.progress import human_time
from strata.engine.types import InputError

STORAGES: tuple[StorageFormat, ...] = ("fp16", "int8", "nf4")
COLUMNS = (
    *("stored", "computed", "rate", "time", "questions/h", "bottleneck", "micro-batch", "groups"),
    *("resident layers", "hidden in", "device GiB", "RAM GiB"),
)


@dataclass(frozen=True, kw_only=True)
class ShapePlan:
    """A plan of a shape, or why there is none; `provenance` is of its rates (see `provenance_of`)."""

    storage: StorageFormat
    compute: str
    provenance: str
    assumption: str | None
    num_questions: int
    plan: SweepPlan | None
    problem: str = ""

    @property
    def questions_per_h(self) -> float:
        """Questions an hour of the sweep."""
        return 3600 * self.num_questions / self.plan.predicted_s if self.plan else 0.0

    def as_json(self) -> dict[str, object]:
        """What the JSON line holds of it."""
        found: dict[str, object] = {"storage": self.storage, "compute": self.compute}
        found |= {"problem": self.problem, "rate": self.provenance, "assumption": self.assumption}
        if self.plan is None:
            return found
        plan = asdict(self.plan) | {"resident_layers": len(self.plan.resident_layers)}
        return found | {"questions_per_h": self.questions_per_h, "hours": self.plan.predicted_s / 3600} | plan


def run_plan_shape(config: PlanConfig) -> int:
    """Plans and prints. Returns the exit status."""
    profile = load_profile(config.profile)
    plans = plan_shape(config, profile)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(tabulate(config, profile, plans))
    for found in plans:
        if found.problem:
            console.print(f"{found.storage}, {found.compute}: {found.problem}")
    for assumption in dict.fromkeys(found.assumption for found in plans if found.assumption):
        console.print(f"no advice to compute so before it is measured: {assumption}")
    if config.json:
        asked = {"shape": config.shape, "profile": profile.name, "questions": question_count(config)}
        asked |= {"tokens": config.tokens, "options": config.options, "option_tokens": config.option_tokens}
        print(json.dumps(asked | {"plans": [found.as_json() for found in plans]}))
    return 0


def plan_shape(config: PlanConfig, profile: MachineProfile) -> list[ShapePlan]:
    """A plan for every storage and way of computing.

    Raises:
        InputError: an unknown shape, a number that makes no sense, or nothing fits.
    """
    model = read_shape(config.shape or "")
    num_questions = question_count(config)
    size = JobSize(
        num_questions=num_questions,
        tokens=config.tokens,
        options=config.options,
        option_tokens=config.option_tokens,
    )
    storages = STORAGES if config.storage == "all" else (config.storage,)
    plans = []
    for linear in linear_kinds(config.machine.dtype, profile):
        machine = profiled_machine(config.machine, profile, torch.float16, linear)
        decoder = build_rehearsed(model, machine.dtype)
        for storage in storages:
            costs = shape_costs(model, decoder, storage, machine.dtype, linear)
            work = shape_workload(size, costs, model.vocab_size)
            plan, problem = None, ""
            try:
                plan = plan_sweep(costs, work, machine, config.plan)
            except InputError as error:
                problem = str(error)
            compute = "int8" if linear == "int8" else str(machine.dtype).removeprefix("torch.")
            plans.append(
                ShapePlan(
                    storage=storage,
                    compute=compute,
                    provenance=provenance_of(profile, compute),
                    assumption=assumption_of(profile, compute),
                    num_questions=num_questions,
                    plan=plan,
                    problem=problem,
                )
            )
    if all(found.plan is None for found in plans):
        raise InputError(plans[0].problem)
    return plans


def question_count(config: PlanConfig) -> int:
    """`--questions` as a number.

    Raises:
        InputError: it is none, or the tokens do not suffice for the options.
    """
    text = str(config.questions)
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--questions: {text!r}; with --shape expected their number, such as 4000")
    if config.options < 1 or config.option_tokens < 1:
        raise InputError(
            f"--options, --option-tokens: {config.options}, {config.option_tokens}; expected 1 or more"
        )
    if config.tokens <= config.options * config.option_tokens:
        raise InputError(
            f"--tokens: {config.tokens} are too few for {config.options} options of {config.option_tokens}; "
            f"expected more than {config.options * config.option_tokens}"
        )
    return int(text)


def tabulate(config: PlanConfig, profile: MachineProfile, plans: Sequence[ShapePlan]) -> Table:
    """One row a plan."""
    size = f"{question_count(config):,} questions of {config.tokens:,} tokens"
    table = Table(title=f"{config.shape} on {profile.name}: {size}", title_justify="left")
    for name in COLUMNS:
        table.add_column(
            name, justify="left" if name in ("stored", "computed", "rate", "bottleneck") else "right"
        )
    for found in plans:
        table.add_row(found.storage, found.compute, found.provenance, *_cells(found))
    return table


def _cells(found: ShapePlan) -> list[str]:
    plan = found.plan
    if plan is None:
        return ["does not fit"]
    return [
        human_time(plan.predicted_s),
        f"{found.questions_per_h:,.0f}",
        plan.bottleneck,
        f"{plan.micro_batch_tokens:,}",
        str(plan.num_groups),
        str(len(plan.resident_layers)),
        plan.hidden_store,
        f"{plan.memory_bytes / GIB:.1f}",
        f"{plan.host_bytes / GIB:.1f}",
    ]
