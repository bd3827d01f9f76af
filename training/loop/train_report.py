"""report.html of a training: loss, evaluations and learning rate, on the page of the engine's reports.

Made of what train.json holds, whatever the end of the run; any part of it may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from strata.engine.files import write_text_atomically
from strata.engine.report.charts import Chart
from strata.engine.report.page import render_page
from strata.engine.report.summary import (
    Figure,
    odd_row,
    phase_shares,
    run_facts,
    total_seconds,
    warning_messages,
)
from strata.engine.report.values import file_name, format_value, plain, section

REPORT_NAME = "report.html"
SMOOTHED_OVER = 0.9
"""Share of the average that a step keeps of the one before it."""
LEAST_SMOOTHED = 20
"""Fewer steps are drawn as they are."""
MEASURES = {
    "map_at_3": ("MAP@3", "main"),
    "accuracy": ("accuracy", "accent"),
    "macro_f1": ("macro F1", "warm"),
    "perplexity": ("perplexity", "main"),
}
GUESSES = {
    "uniform_map_at_3": "MAP@3 of a uniform guess",
    "longest_option_map_at_3": "MAP@3 of the longest option",
    "commonest_label_accuracy": "accuracy of the commonest label",
}


def leave_train_report(out: Path, record: Mapping[str, Any]) -> None:
    """Writes report.html.

    Args:
        out: the run's folder.
        record: what train.json holds (`RunRecord.as_dict()`).

    Raises:
        OutputError: it cannot be written.
    """
    write_text_atomically(out / REPORT_NAME, render_train_report(record))


def render_train_report(record: Mapping[str, Any]) -> str:
    """The page as text; needs no network."""
    config, measured = section(record, "run_info", "config"), section(record, "measured")
    charts = train_charts(record)
    return render_page(
        f"training {file_name(config.get('model', ''))}",
        charts,
        heading="Curves",
        status=record.get("status"),
        error=section(record, "error"),
        method=_describe_method(record),
        figures=[figure for figure in _headline(record) if figure.value],
        messages=warning_messages(record),
        odd_rows=[odd_row(kind, row) for kind, row in section(record, "warnings", "rows").items()],
        answer_charts=charts,
        sections=[("Evaluations", evaluation_table(evaluations_in(record)))],
        phases=phase_shares(section(measured, "seconds_by_phase")),
        facts=list(run_facts(section(record, "run_info"))),
        config=json.dumps(config, indent=2, default=str),
    )


def evaluations_in(record: Mapping[str, Any]) -> list[dict]:
    """The evaluations of a run, with their steps; step 0 is before the first step."""
    return list(section(record, "measured").get("evaluations") or [])


def train_charts(record: Mapping[str, Any]) -> list[Chart]:
    """Loss, evaluations, learning rate and gradients by step, as far as there are any."""
    history, found = section(record, "measured", "history"), evaluations_in(record)
    if not history.get("step"):
        return []
    charts = [_loss_chart(history, found)]
    if found:
        charts.append(_evaluation_chart(found))
    rate = _line("learning rate", history["step"], history["learning_rate"], "cool")
    norm = _line("gradient norm", history["step"], history["grad_norm"], "warm")
    note = "Before it was clipped to --max-grad-norm. Single peaks are harmless, growth is not."
    charts.append(_chart("rate", "Learning rate", "Of the adapter; the head's is a multiple of it.", [rate]))
    charts.append(_chart("norm", "Gradient norm", note, [norm]))
    return charts


def evaluation_table(evaluations: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A header and a row an evaluation; empty without any."""
    names = [name for name in ("loss", *MEASURES) if any(name in found for found in evaluations)]
    header = ["step", *(MEASURES.get(name, (name, ""))[0] for name in names)]
    rows = [
        [str(found["step"] or "before the first"), *(format_value(name, found.get(name)) for name in names)]
        for found in evaluations
    ]
    return [header, *rows] if rows else []


def _describe_method(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    config, plan = section(record, "run_info", "config"), section(record, "plan")
    lora = f"rank {config.get('lora_r')}, alpha {config.get('lora_alpha')}, "
    lora += plain(config.get("lora_targets", ""))
    chips = [
        ("model", file_name(config.get("model") or "")),
        ("task", str(config.get("task") or "")),
        ("trains", "all weights" if config.get("full") else f"LoRA ({lora})"),
        ("from adapter", file_name(config.get("adapter") or "")),
        ("parameters", format_value("", plan.get("trained_parameters"))),
        ("dtype", str(plan.get("dtype") or "")),
        ("data", file_name(config.get("questions") or config.get("passages") or "")),
        ("examples", format_value("", plan.get("num_train"))),
        ("evaluated on", format_value("", plan.get("num_valid"))),
    ]
    return [(name, value) for name, value in chips if value]


def _headline(record: Mapping[str, Any]) -> Iterator[Figure]:
    measured, plan = section(record, "measured"), section(record, "plan")
    losses = section(measured, "history").get("loss") or []
    stopped = "stopped early" if measured.get("stopped_early") else ""
    yield Figure("Steps", f"{measured.get('steps_done', 0):,} of {plan.get('num_steps', 0):,}", stopped)
    if losses:
        yield Figure("Loss", f"{losses[-1]:.4f}", f"{losses[0]:.4f} in the first step")
    found = evaluations_in(record)
    first, last = (found[0], found[-1]) if found else ({}, {})
    for name, (label, _) in MEASURES.items():
        before = format_value(name, first.get(name)) if first.get("step") == 0 and len(found) > 1 else ""
        yield Figure(
            label[0].upper() + label[1:],
            format_value(name, last.get(name)),
            f"{before} before training" if before else "",
        )
    if measured.get("best_step"):
        yield Figure("Best evaluation", f"step {measured['best_step']}", "kept in best/")
    speed = f"{measured['examples_per_s']:.3g}" if measured.get("examples_per_s") else ""
    yield Figure(
        "Time", format_value("seconds", total_seconds(measured)), f"{speed} examples/s" if speed else ""
    )


def _loss_chart(history: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> Chart:
    steps, losses = history["step"], history["loss"]
    is_long = len(steps) >= LEAST_SMOOTHED
    data = [_line("a step's batch", steps, losses, "soft" if is_long else "main")]
    if is_long:
        data.append(_line("smoothed", steps, smooth(losses), "main"))
    if evaluations:
        data.append(_points("validation", evaluations, "loss", "accent"))
    note = "Mean loss of each step's batch, and of the validation set where it was evaluated."
    return _chart("loss", "Loss", note, data)


def _evaluation_chart(evaluations: Sequence[Mapping[str, Any]]) -> Chart:
    data = [
        _points(label, evaluations, name, colour)
        for name, (label, colour) in MEASURES.items()
        if any(name in found for found in evaluations)
    ]
    guesses = evaluations[-1].get("heuristics") or {}
    steps = [found["step"] for found in evaluations]
    for (name, label), dash in zip(GUESSES.items(), ("dot", "dash", "dashdot"), strict=True):
        if name in guesses:
            line = _line(label, steps, [guesses[name]] * len(steps), "soft")
            data.append(line | {"line": {"color": "soft", "dash": dash, "width": 1.5}})
    note = "On the validation set; broken lines: what is reached without a model."
    return _chart("evaluations", "Evaluations", note, data)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving averages, each corrected for having begun at zero (as Adam's; arXiv:1412.6980)."""
    averages, total = [], 0.0
    for number, value in enumerate(values, start=1):
        total = SMOOTHED_OVER * total + (1 - SMOOTHED_OVER) * value
        averages.append(total / (1 - SMOOTHED_OVER**number))
    return averages


def _line(name: str, x: Sequence[float], y: Sequence[float], colour: str) -> dict[str, Any]:
    return {
        "x": list(x),
        "y": list(y),
        "mode": "lines" if len(x) > 1 else "markers",
        "name": name,
        "line": {"color": colour, "width": 1.5},
        "marker": {"color": colour},
        "hovertemplate": "step %{x}: %{y:.4g}",
    }


def _points(name: str, found: Sequence[Mapping[str, Any]], key: str, colour: str) -> dict[str, Any]:
    known = [one for one in found if one.get(key) is not None]
    line = _line(name, [one["step"] for one in known], [one[key] for one in known], colour)
    return line | {"mode": "lines+markers", "marker": {"color": colour, "size": 8}}


def _chart(name: str, title: str, note: str, data: list[dict[str, Any]]) -> Chart:
    layout = {
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
        "yaxis": {"exponentformat": "e"},
        "showlegend": len(data) > 1,
    }
    return {"id": name, "title": title, "note": note, "data": data, "layout": layout}
