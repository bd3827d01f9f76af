"""docs/plans.md: what `strata plan --shape` says of well-known sizes on four machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from strata.engine.config import PlanConfig
from strata.engine.machine.devices import GIB
from strata.engine.machine.profile import load_profile
from strata.engine.types import InputError
from strata.scripts.plan_shape import ShapePlan, plan_shape

NUM_QUESTIONS = 4000
SHAPES = {"7B": "llama2-7b", "13B": "llama2-13b", "32B": "qwen3-32b", "70B": "llama2-70b"}
MACHINES = {
    "kaggle-2xt4": "Two T4 of 15 GiB, 29 GiB of RAM (Kaggle)",
    "card-24gb": "One card of 24 GB, 64 GB of RAM (an RTX 3090)",
    "h200": "One H200 of 141 GB, 126 GiB of RAM",
    "cpu-zen4": "Two cores of a Zen 4 server, 24 GB of RAM",
}
COLUMNS = (
    *("model", "stored", "computed", "hours", "questions/h", "bound by"),
    *("GiB a device", "GiB of RAM", "resident"),
)
HEAD = f"""# Memory and time

Made by `make docs-pages` from `strata plan`'s own code: what the planner expects of {NUM_QUESTIONS:,}
questions of five options of 40 tokens. A plan takes as much of a machine's memory as makes it faster;
`--memory-gib` and `--host-memory-gib` bound it. The times are predictions by the rates of profiles in
`engine/machine/profiles`, which say where each is from (the H200's are measured, where a 70B and a 7B took
5 and 17% longer than predicted; those of the other cards are reported by others or assumed, and no T4 has
run strata's int8 kernel). The same for another job:

    strata plan --profile kaggle-2xt4 --shape llama2-70b --questions 4000 --tokens 1500

and plans for the machine at hand predict time better after

    strata bench calibrate

has measured it for about a minute.

*Stored* is how the checkpoint is kept, *computed* what the linear layers compute in; *GiB* are those of
each device and of host memory (on a CPU they are the same memory), *resident* the layers that stay in
memory while the others stream.
"""


@dataclass(frozen=True, kw_only=True)
class Use:
    """A job of the page: its title, and tokens a question, options included."""

    title: str
    tokens: int


USES = (
    Use(title="Questions alone: 300 tokens", tokens=300),
    Use(title="Questions with contexts: 1,500 tokens", tokens=1500),
)


def plans_page() -> str:
    """The page as Markdown; takes a minute or two."""
    parts = [HEAD]
    for use in USES:
        parts.append(f"## {use.title}\n")
        parts += [machine_table(use, machine) for machine in MACHINES]
    return "\n".join(parts)


def machine_table(use: Use, machine: str) -> str:
    """The table of one machine, with its title."""
    lines = [
        f"### {MACHINES[machine]}\n",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---|--:|--:|---|--:|--:|--:|",
    ]
    for size in SHAPES:
        lines += shape_rows(use, machine, size)
    return "\n".join(lines) + "\n"


def shape_rows(use: Use, machine: str, size: str) -> list[str]:
    """A row a way to store and to compute."""
    config = PlanConfig(shape=SHAPES[size], questions=Path(str(NUM_QUESTIONS)), tokens=use.tokens)
    try:
        plans = plan_shape(config, load_profile(machine))
    except InputError as error:
        return [f"| {size} | | | {error} | | | | | |"]
    return [f"| {size} | {found.storage} | {found.compute} | {_cells(found)} |" for found in plans]


def _cells(found: ShapePlan) -> str:
    plan = found.plan
    if plan is None:
        return "does not fit | | | | |"
    hours = plan.predicted_s / 3600
    return " | ".join(
        (
            f"{hours:.2f}" if hours < 10 else f"{hours:,.0f}",
            f"{found.questions_per_h:,.0f}",
            plan.bottleneck,
            f"{plan.memory_bytes / GIB:.1f}",
            f"{plan.host_bytes / GIB:.1f}",
            str(len(plan.resident_layers)),
        )
    )
