"""`strata run`: composes retrieval and the engine, and prints what each stage did."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from strata.engine.deadline import parse_duration_s
from strata.engine.jobs.job import Session
from strata.engine.pipeline.account import StageAccount
from strata.engine.pipeline.config import Pipeline, read_pipeline
from strata.engine.pipeline.fitted import settle_fitted
from strata.engine.pipeline.forecast import ASSUMED_SHARE, UnitForecast, forecast
from strata.engine.pipeline.run import PipelineRun, run_pipeline
from strata.engine.pipeline.settings import RunSettings
from strata.engine.progress import human_time
from strata.engine.questions.question_file import read_questions
from strata.engine.results.human_units import human_bytes
from strata.engine.results.partial_scores import resume_hint
from strata.engine.types import RunWarnings
from strata.scripts.contexts.run_contexts import finders
from strata.scripts.score import describe_metrics, print_warnings


def run_run(settings: RunSettings) -> int:
    """Runs or forecasts a pipeline. Returns the exit status."""
    settings.check()
    pipeline = read_pipeline(settings.config, settings.changes)
    if settings.plan:
        return print_plan(pipeline, settings)
    warnings = RunWarnings()
    search = finders(pipeline.file, pipeline.sources, pipeline.retrieval, warnings)
    try:
        run = run_pipeline(pipeline, settings, search, tell=print_stage)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(resume_hint(settings.out)) from interrupt
    print_warnings(run.record["warnings"])
    for line in warnings.lines():
        print(f"warning: {line}", file=sys.stderr)
    print_summary(run)
    return 0


def print_stage(account: StageAccount) -> None:
    """A line or two about a stage that has just ended."""
    console = Console(highlight=False)
    cut = " before the deadline," if account.num_reached < account.num_chosen else ""
    line = (
        f"stage {account.name}: {account.num_reached:,} of {account.num_chosen:,} chosen question(s){cut} "
        f"in {human_time(account.seconds)}"
    )
    if account.chosen_before is not None and account.chosen_after is not None:
        line += (
            f"; on these MAP@3 {account.chosen_before['map_at_3']:.3f} -> "
            f"{account.chosen_after['map_at_3']:.3f}"
        )
    elif account.num_changed:
        line += f"; {account.num_changed:,} best option(s) changed"
    if account.metrics is not None:
        line += f"; all {account.metrics['map_at_3']:.3f}"
    console.print(line, markup=False, soft_wrap=True)


def print_summary(run: PipelineRun) -> None:
    """What the run leaves."""
    console = Console(highlight=False)
    members = run.record["measured"]["members"]
    if len(members) > 1 and any(member["metrics"] for member in members.values()):
        table = Table("member", "questions", "weight", "MAP@3", "accuracy", box=None)
        for name, member in members.items():
            metrics = member["metrics"] or {}
            shares = [f"{metrics[key]:.3f}" if metrics else "" for key in ("map_at_3", "accuracy")]
            weight = run.record["measured"]["weights"].get(name, 0.0)
            table.add_row(name, f"{member['num_scored']:,}", f"{weight:.3f}", *shares)
        console.print(table)
    if run.record["metrics"]:
        console.print(describe_metrics(run.record["metrics"]))
    files = ["submission.csv", "scores.parquet", "run.json", "report.html"]
    if (run.out / "fitted.json").is_file():
        files.append("fitted.json")
    seconds = run.record["measured"]["seconds"]
    console.print(f"{human_time(seconds)}; {', '.join(files)} in {run.out}", markup=False, soft_wrap=True)


def print_plan(pipeline: Pipeline, settings: RunSettings) -> int:
    """A table of what every unit will take, and whether that fits the deadline."""
    warnings = RunWarnings(strict=settings.strict)
    questions = read_questions(
        settings.questions,
        context_column=pipeline.input.context_column,
        id_column=pipeline.input.id_column,
        limit=settings.num_questions,
        warnings=warnings,
    )
    # What is to be fitted on answers is not there yet, which a forecast does not mind.
    fitted = settle_fitted(pipeline, num_answered=1)
    session = Session(warnings=warnings, folder=Path(tempfile.gettempdir()))
    units = forecast(pipeline, questions, session, fitted=fitted, profile=settings.profile)
    console = Console(highlight=False)
    console.print(_plan_table(units))
    total_s = sum(unit.seconds for unit in units)
    console.print()
    console.print(_device_table(units))
    console.print()
    console.print(_total_line(pipeline, total_s))
    if any(unit.is_assumed for unit in units):
        console.print(f"* a rule on scores: {ASSUMED_SHARE:.0%} of the questions are assumed")
    for line in warnings.lines():
        print(f"warning: {line}", file=sys.stderr)
    figures = {"predicted_s": total_s, "units": [unit.seconds for unit in units]}
    console.print(json.dumps(figures), soft_wrap=True)
    return 0


def _plan_table(units: list[UnitForecast]) -> Table:
    table = Table("stage", "members", "questions", "tokens", "groups", "bottleneck", "time", box=None)
    for unit in units:
        mark = "*" if unit.is_assumed else ""
        table.add_row(
            unit.stage,
            ", ".join(unit.unit.names),
            f"{unit.num_questions:,}{mark}",
            f"{unit.plan.get('tokens_computed', 0):,}",
            str(unit.plan.get("num_groups", 1)),
            str(unit.plan.get("bottleneck", "")),
            human_time(unit.seconds),
        )
    return table


def _device_table(units: list[UnitForecast]) -> Table:
    """What every unit asks of each device; devices of a unit are alike and share its questions."""
    columns = ("stage", "device", "dtype", "questions", "computing", "reading", "memory", "RAM of all")
    table = Table(*columns, box=None)
    for unit in units:
        for plan in unit.plan.get("parts") or [unit.plan]:
            devices = plan.get("devices") or []
            for device in devices:
                table.add_row(
                    unit.stage,
                    str(device),
                    str(plan.get("dtype", "")),
                    f"{-(-unit.num_questions // len(devices)):,}",
                    human_time(plan.get("compute_s", 0.0)),
                    human_time(plan.get("read_s", 0.0)),
                    human_bytes(plan.get("memory_bytes", 0)),
                    human_bytes(plan.get("host_bytes", 0)),
                )
    return table


def _total_line(pipeline: Pipeline, total_s: float) -> str:
    line = f"in all {human_time(total_s)} of computing"
    if pipeline.deadline is None:
        return line
    allowed_s = parse_duration_s("deadline", pipeline.deadline)
    share = total_s / allowed_s
    if share <= 1:
        told = f"{share:.0%}" if share >= 0.01 else "under 1%"
        return f"{line}, {told} of the deadline of {pipeline.deadline}"
    return (
        f"{line}, {share:.1f} times the deadline of {pipeline.deadline}: later stages will reach only "
        "as many questions as there is time for, the least sure first"
    )
