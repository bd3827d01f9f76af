"""report.html: one self-contained page about a run, from its record and its scores. Knows no sweep.

Keys it looks for in the record, each of which may be missing: run_info.config.model, .head, .debias, .dtype
and .devices; plan and measured with any keys (those in both are set side by side); measured.seconds,
.seconds_by_phase {phase: s}, .tok_per_s, .roofline_fraction; metrics as `metrics.evaluate` returns it;
warnings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from strata.engine.files import write_bytes_atomically
from strata.engine.results.tables import NUM_PREDICTED
from strata.engine.types import QuestionScores

NUM_LISTED = 20
MAX_PROMPT_CHARACTERS = 110
TEMPLATE = "report.html.jinja"


class Figure(NamedTuple):
    """One figure of the headline, with a smaller line below it."""

    label: str
    value: str
    note: str = ""


def write_report(path: Path, record: Mapping, scores: Sequence[QuestionScores]) -> None:
    """Writes report.html: no script and no external resource, readable in light and dark.

    Args:
        path: The HTML file to leave.
        record: What run.json holds (`RunRecord.as_dict()`); absent parts leave their section out.
        scores: What the run says of its questions, in the order of the file; may be empty.

    Raises:
        OutputError: If the file cannot be written.
    """
    # Lone surrogates, which JSON can smuggle into a prompt, have no UTF-8 form: they become question marks.
    html = render_report(record, scores).encode("utf-8", errors="replace")
    write_bytes_atomically(path, html)


def render_report(record: Mapping, scores: Sequence[QuestionScores]) -> str:
    """The page as text; every value is escaped by the template engine."""
    # autoescape is on for every template: Jinja's own choice by file name would leave `.jinja` unescaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    measured = section(record, "measured")
    warnings = section(record, "warnings")
    return environment.get_template(TEMPLATE).render(
        title=model_name(record),
        subtitle=describe_method(record),
        status=record.get("status"),
        error=section(record, "error"),
        figures=[figure for figure in headline(record, scores) if figure.value],
        comparison=compare_plan(section(record, "plan"), measured),
        phases=phase_shares(section(measured, "seconds_by_phase")),
        odd_rows=[odd_row(kind, row) for kind, row in section(warnings, "rows").items()],
        messages=warnings.get("messages") or [],
        tables=question_tables(scores),
        facts=list(run_facts(section(record, "run_info"))),
        config=json.dumps(section(record, "run_info").get("config") or {}, indent=2, default=str),
    )


def section(record: Mapping, key: str) -> Mapping:
    """A part of the record, empty when it is missing or null."""
    return record.get(key) or {}


def model_name(record: Mapping) -> str:
    """The last part of the model's path."""
    config = section(section(record, "run_info"), "config")
    return Path(str(config.get("model") or "strata")).name or "strata"


def describe_method(record: Mapping) -> str:
    """How the run scored, in one line: head, debias, dtype, devices."""
    config = section(section(record, "run_info"), "config")
    names = ("head", "debias", "dtype", "devices")
    return ", ".join(f"{name} {plain(config[name])}" for name in names if config.get(name))


def plain(value: object) -> str:
    """A list as comma-separated text, anything else as text."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def headline(record: Mapping, scores: Sequence[QuestionScores]) -> Iterator[Figure]:
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
    yield Figure("Seconds", format_value("seconds", total_seconds(measured)))
    yield Figure("Tokens/s", format_value("tok_per_s", measured.get("tok_per_s")))
    yield Figure("Of roofline", format_value("roofline_fraction", measured.get("roofline_fraction")))


def total_seconds(measured: Mapping) -> object:
    """Seconds of the run, from its phases when it does not say."""
    phases = [value for value in section(measured, "seconds_by_phase").values() if is_number(value)]
    return measured.get("seconds", sum(phases) if phases else None)


def is_number(value: object) -> bool:
    """True for int and float, not for bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def format_value(name: str, value: object) -> str:
    """A value as text in the unit that its name ends in; empty for None.

    `_bytes` are shown in GiB (MiB below 0.1 GiB), `_fraction` as a percentage, `map_at_3` and `accuracy` to
    three digits, whole numbers with thousands separators, others to four significant digits.
    """
    if value is None:
        return ""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return plain(value)
    if name.endswith("_bytes"):
        return f"{value / 2**30:,.2f} GiB" if value >= 0.1 * 2**30 else f"{value / 2**20:,.2f} MiB"
    if name.endswith("_fraction"):
        return f"{100 * value:.1f}%"
    if name.endswith(("map_at_3", "accuracy", "macro_f1")):
        return f"{value:.3f}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


SAME_BY_DEFINITION = ("trie_nodes", "tokens_per_option_run")
"""Counts that plan and run take from the same tree."""


def compare_plan(plan: Mapping, measured: Mapping) -> list[tuple[str, str, str, str]]:
    """Rows (name, planned, measured, measured / planned) for every key that both have, nested ones dotted."""
    planned, found = dict(flatten(plan)), dict(flatten(measured))
    return [
        (
            name,
            format_unit(name, planned[name]),
            format_unit(name, found[name]),
            ratio(found[name], planned[name]),
        )
        for name in planned
        if name in found and name not in SAME_BY_DEFINITION
    ]


def flatten(values: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested mappings with dotted names; None is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + str(key), value


def format_unit(name: str, value: object) -> str:
    """As `format_value`; a dotted name takes its unit from the first part that has one (peak_bytes.cpu)."""
    parts = name.split(".")
    return format_value(
        next((part for part in parts if part.endswith(("_bytes", "_fraction"))), parts[-1]), value
    )


def ratio(measured: object, planned: object) -> str:
    """Measured over planned to two decimals; empty unless both are numbers and the second is not 0."""
    if (
        isinstance(measured, (int, float))
        and isinstance(planned, (int, float))
        and is_number(planned)
        and planned
    ):
        return f"{measured / planned:.2f}"
    return ""


def phase_shares(seconds_by_phase: Mapping) -> list[dict]:
    """Every phase with its seconds and its percentage of their sum, longest first."""
    phases = {name: value for name, value in seconds_by_phase.items() if is_number(value) and value > 0}
    total = sum(phases.values())
    ranked = sorted(phases.items(), key=lambda item: -item[1])
    return [
        {"name": name, "seconds": f"{value:.4g}", "percent": 100 * value / total} for name, value in ranked
    ]


def odd_row(kind: str, row: Mapping) -> dict:
    """One kind of odd row: how many, and the first ids."""
    ids = row.get("ids") or []
    return {"kind": kind, "count": row.get("count", len(ids)), "ids": ids[:5]}


def question_tables(scores: Sequence[QuestionScores]) -> list[tuple[str, list[dict]]]:
    """The first questions and, when there are more, the least certain ones, smallest margin first."""
    if not scores:
        return []
    if len(scores) <= NUM_LISTED:
        return [("Questions", [question_row(row) for row in scores])]
    unsure = sorted(scores, key=lambda row: row.margin)[:NUM_LISTED]
    return [
        (f"First {NUM_LISTED} questions", [question_row(row) for row in scores[:NUM_LISTED]]),
        (f"Least certain {NUM_LISTED} questions", [question_row(row) for row in unsure]),
    ]


def question_row(row: QuestionScores) -> dict:
    """What the tables show of a question; `rank` of the answer is 0 when it is not among the three best."""
    best, answer = row.order[:NUM_PREDICTED], row.question.answer
    name_of = row.question.name_of
    shown = () if row.question.is_text else enumerate(row.question.options)
    return {
        "id": row.question.id,
        "prompt": shorten(row.question.prompt),
        "options": "\n".join(f"{name_of(index)}: {shorten(text)}" for index, text in shown),
        "best": [
            {"letter": name_of(index), "probability": f"{row.probabilities[index]:.3f}"} for index in best
        ],
        "answer": None if answer is None else name_of(answer),
        "rank": best.index(answer) + 1 if answer in best else 0,
        "margin": f"{row.margin:.3f}" if np.isfinite(row.margin) else "",
    }


def shorten(text: str) -> str:
    """The text on one line, cut at MAX_PROMPT_CHARACTERS."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_PROMPT_CHARACTERS else line[: MAX_PROMPT_CHARACTERS - 3].rstrip() + "..."


def run_facts(run_info: Mapping) -> Iterator[tuple[str, str]]:
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
