"""The page's head: what was run, its figures, warnings, plan beside measurement, and how to repeat it.

Keys it looks for in the record, each of which may be missing: run_info.config as `strata score` or `strata
run` has it; plan with any keys, or `units` of them; measured with any keys (those that both have are set
side by side); metrics as `evaluate` returns it; warnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from strata.engine.report.values import (
    distinct,
    file_name,
    flatten,
    format_unit,
    format_value,
    human_time,
    is_number,
    plain,
    ratio,
    section,
)
from strata.engine.results.roofline import describe_roofline
from strata.engine.types import QuestionScores

NUM_IDS = 5
SAME_BY_DEFINITION = ("trie_nodes", "tokens_per_option_run")
"""Counts that plan and run take from the same tree."""


class Figure(NamedTuple):
    """One figure of the headline, with a smaller line below it."""

    label: str
    value: str
    note: str = ""


def title_of(record: Mapping[str, Any]) -> str:
    """What was run: the model, or the pipeline's file."""
    config = section(record, "run_info", "config")
    return file_name(config.get("model") or config.get("config") or "strata") or "strata"


def plans_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All plans of a record: of its units, of the parts of an ensemble, or the one there is."""
    plan = section(record, "plan")
    plans = [section(unit, "plan") for unit in plan.get("units") or []] or [plan]
    return [part for one in plans for part in (one.get("parts") or [one])]


def resolved(record: Mapping[str, Any], key: str) -> str:
    """What plans say of a setting, else the configuration; empty where neither does."""
    found = distinct([plan.get(key) for plan in plans_of(record)])
    return plain(found or distinct([section(record, "run_info", "config").get(key)]))


def describe_method(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the run scored: (name, value) of what was resolved, what is unknown left out."""
    config = section(record, "run_info", "config")
    pipeline_members = section(config, "pipeline", "members").values()
    settings = [config, *pipeline_members]
    chips = [
        ("model", plain(distinct([file_name(one["model"]) for one in settings if one.get("model")]))),
        ("adapter", plain([file_name(path) for path in distinct([one.get("adapter") for one in settings])])),
        ("head", resolved(record, "head")),
        ("debias", plain(distinct([one.get("debias") for one in settings]))),
        ("dtype", resolved(record, "dtype")),
        ("devices", resolved(record, "devices")),
        ("template", resolved(record, "template")),
        ("data", file_name(config.get("questions") or "")),
    ]
    return [(name, value) for name, value in chips if value and (name, value) != ("debias", "none")]


def headline(record: Mapping[str, Any], scores: Sequence[QuestionScores]) -> Iterator[Figure]:
    """The figures at the top of the page; one without a value is left out by the caller."""
    measured, metrics = section(record, "measured"), section(record, "metrics")
    heuristics = section(metrics, "heuristics")
    uniform, longest, commonest = (
        format_value(name, heuristics.get(name))
        for name in ("uniform_map_at_3", "longest_option_map_at_3", "commonest_label_accuracy")
    )
    answered = f"{metrics['num_answered']:,} with a known answer" if metrics.get("num_answered") else ""
    yield Figure("Questions", f"{len(scores):,}", answered)
    guesses = {"uniform guess": uniform, "longest option": longest}
    beside = ", ".join(f"{name} {value}" for name, value in guesses.items() if value)
    yield Figure("MAP@3", format_value("map_at_3", metrics.get("map_at_3")), beside)
    beside = f"always the commonest label {commonest}" if commonest else ""
    yield Figure("Accuracy", format_value("accuracy", metrics.get("accuracy")), beside)
    yield Figure("Macro F1", format_value("macro_f1", metrics.get("macro_f1")))
    total = total_seconds(measured)
    sweep = measured.get("sweep_s")
    beside = f"{human_time(sweep)} of it in the sweep" if isinstance(sweep, (int, float)) else ""
    yield Figure("Time", format_value("seconds", total), beside)
    yield Figure(
        "Tokens/s", format_value("tok_per_s", measured.get("tok_per_s")), describe_speed(record, measured)
    )


def describe_speed(record: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """The share of the roofline, in words; empty where it is not known."""
    fraction = measured.get("roofline_fraction")
    if not isinstance(fraction, (int, float)):
        return ""
    source = measured.get("roofline_from")
    if not isinstance(source, str):
        source = plain(distinct([section(plan, "rates").get("rates_from") for plan in plans_of(record)]))
    return describe_roofline(fraction, source or "of unknown source")


def total_seconds(measured: Mapping[str, Any]) -> object:
    """Seconds of the run, from its phases when it does not say."""
    phases = [value for value in section(measured, "seconds_by_phase").values() if is_number(value)]
    return measured.get("seconds", sum(phases) if phases else None)


def compare_plan(plan: Mapping[str, Any], measured: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (name, planned, measured, measured / planned) for every key that both have, nested ones dotted."""
    planned, found = dict(flatten(plan)), dict(flatten(measured))
    return [
        (name, format_unit(name, value), format_unit(name, found[name]), ratio(found[name], value))
        for name, value in planned.items()
        if name in found and name not in SAME_BY_DEFINITION
    ]


def phase_shares(seconds_by_phase: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every phase with its seconds and its percentage of their sum, longest first."""
    phases = {name: value for name, value in seconds_by_phase.items() if is_number(value) and value > 0}
    total = sum(phases.values())
    ranked = sorted(phases.items(), key=lambda item: -item[1])
    return [
        {"name": name, "seconds": human_time(value), "percent": 100 * value / total} for name, value in ranked
    ]


def odd_row(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """One kind of odd row: how many, and the first ids."""
    ids = row.get("ids") or []
    return {"kind": kind, "count": row.get("count", len(ids)), "ids": ids[:NUM_IDS]}


def warning_messages(record: Mapping[str, Any]) -> list[str]:
    """What a reader should know before the figures: messages, and contexts that were shortened."""
    measured = section(record, "measured")
    messages = list(section(record, "warnings").get("messages") or [])
    if cut := measured.get("truncated_questions"):
        lost, given = measured.get("truncated_context_tokens", 0), measured.get("questions_with_context", 0)
        messages.append(
            f"contexts of {cut:,} of {given:,} question(s) were shortened to fit, by {lost:,} tokens in all"
        )
    if told := describe_int8_check(measured):
        messages.append(told)
    return messages


def describe_int8_check(measured: Mapping[str, Any]) -> str:
    """What int8 did to a sample's answers, in one line; empty where nothing was compared."""
    int8 = section(measured, "int8_check")
    if int8.get("top1_agreement") is None:
        return ""
    return (
        f"int8 beside {int8.get('dense_dtype', 'dense weights')} on {int8.get('questions', 0)} "
        f"question(s): the same best option on {int8['top1_agreement']:.0%}, margins off by "
        f"{int8.get('margin_rms_error', 0):.3g} where they are {int8.get('margin_rms', 0):.3g} (RMS)"
    )


def run_facts(run_info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of what one needs to repeat the run; what is unknown is left out."""
    machine = section(run_info, "machine")
    changed = " (with uncommitted changes)" if run_info.get("uncommitted_changes") else ""
    for name in ("started", "strata", "commit", "python", "torch", "transformers", "command"):
        if run_info.get(name):
            yield name, str(run_info[name]) + (changed if name == "commit" else "")
    for name in ("cpu", "num_cores", "ram_gib", "platform"):
        if machine.get(name):
            yield name, str(machine[name])
    for gpu in machine.get("gpus") or []:
        memory = f", {gpu['memory_gib']} GiB" if gpu.get("memory_gib") else ""
        yield "gpu", str(gpu.get("name")) + memory
