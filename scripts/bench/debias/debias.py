"""`strata bench debias`: what taking out position bias costs, in tokens and in time.

`pride_cost_ratio` is the tokens that pride computes over those of one order. `rotations_over_ideal` is the
time of all cyclic orders of a question in one tree, over one order's, over (P + O S) / (P + S): P tokens
before the list of O options, S tokens of it. Both kinds have all weights in memory, and take turns.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from strata.engine.deadline import Deadline
from strata.engine.heads.debiasing.registry import choose_debias
from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.plan.shapes import SHAPES
from strata.engine.scorer import Scorer
from strata.engine.types import Prompt
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.debias.config import DebiasBenchConfig
from strata.scripts.bench.debias.listed_questions import count_tree_tokens, listed_prompts
from strata.scripts.bench.record import (
    RESULTS,
    append_result,
    asked_settings,
    print_environment,
    print_table,
    run_parts,
)
from strata.scripts.bench.timing import time_in_turns
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint

COUNTED = ("none", "pride", "rotate", "permute")


def run_debias_bench(config: DebiasBenchConfig) -> int:
    """Runs the parts, prints and appends the result."""
    print_environment()
    parts = {"tokens": count_tokens, "rotations": time_rotations}
    figures = run_parts(parts, config.parts, config)
    append_result("debias", figures | {"config": asked_settings(config)}, RESULTS)
    return 0


def count_tokens(config: DebiasBenchConfig) -> dict[str, Any]:
    """Tokens of each way over those of one order."""
    tokens = {name: count_tree_tokens(_prompts(config, name, config.counted_questions)) for name in COUNTED}
    ratios = {f"{name}_cost_ratio": tokens[name] / tokens["none"] for name in COUNTED[1:]}
    print_table([{"questions": config.counted_questions, **tokens, **ratios}])
    return ratios | {"tokens_one_order": tokens["none"]}


def time_rotations(config: DebiasBenchConfig) -> dict[str, Any]:
    """Seconds of one order and of all cyclic ones, in turns, and their ratio over the ideal."""
    checkpoint = make_random_checkpoint(SHAPES[config.shape], config.folder / config.shape)
    prompts = {name: _prompts(config, name, config.num_questions) for name in ("none", "rotate")}
    tokens = {name: count_tree_tokens(found) for name, found in prompts.items()}
    with _open(config, checkpoint) as scorer:
        device = str(scorer.prepare(prompts["none"]).machine.devices[0])
        runs = {name: lambda asked=found: _score(scorer, asked) for name, found in prompts.items()}
        for run in runs.values():
            run()
        seconds = {name: median(found) for name, found in time_in_turns(runs, config.rounds, device).items()}
    ideal = ideal_ratio(config)
    figures = {
        "one_order_s": seconds["none"],
        "rotations_s": seconds["rotate"],
        "rotations_token_ratio": tokens["rotate"] / tokens["none"],
        "rotations_ideal_ratio": ideal,
        "rotations_over_ideal": seconds["rotate"] / seconds["none"] / ideal,
    }
    print_table([figures])
    return figures


def ideal_ratio(config: DebiasBenchConfig) -> float:
    """(P + O S) / (P + S)."""
    listed = config.num_options * config.option_tokens
    return (config.prefix_tokens + config.num_options * listed) / (config.prefix_tokens + listed)


def _prompts(config: DebiasBenchConfig, name: str, num: int) -> list[Prompt]:
    size = QuestionSize(
        prefix_tokens=config.prefix_tokens,
        option_tokens=config.option_tokens,
        num_options=config.num_options,
    )
    return listed_prompts(num, size, choose_debias(name), vocab_size=SHAPES[config.shape].vocab_size)


def _open(config: DebiasBenchConfig, checkpoint: Path) -> Scorer:
    overrides = PlanOverrides(num_groups=1, resident_layers=SHAPES[config.shape].num_layers)
    session = Session(folder=config.folder, overrides=overrides)
    member = Member(model=checkpoint, head="letters")
    return Scorer.open([member], MachineSettings(devices=config.device), session=session)


def _score(scorer: Scorer, prompts: list[Prompt]) -> None:
    for _ in scorer.prepare(prompts).groups(Deadline()):
        pass
