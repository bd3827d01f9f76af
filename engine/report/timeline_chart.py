"""The chart of a timeline: a row for each kind of work and device (or lane of it), a bar a layer."""

from __future__ import annotations

from typing import Any, get_args

from strata.engine.report.charts import Chart
from strata.engine.report.values import human_time
from strata.engine.results.timeline import Span, Timeline, Work

COLOURS = {"read": "cool", "copy": "accent", "wait": "bad", "compute": "main", "store": "warm"}
MAX_DRAWN = 4_000
"""What a browser moves smoothly."""
LEAST_WAIT_S = 1e-3
"""Shorter waits are those for a lock, not for weights."""
ROW_PIXELS, MARGIN_PIXELS = 34, 130


def timeline_chart(timeline: Timeline) -> list[Chart]:
    """Who did what when; empty where no sweep was noted."""
    told = [span for span in timeline.spans if span.work != "wait" or _seconds(span) >= LEAST_WAIT_S]
    spans = sorted(told, key=lambda span: span.start_s)[:MAX_DRAWN]
    if not spans:
        return []
    first_s = spans[0].start_s
    works: tuple[Work, ...] = get_args(Work)
    kinds = [work for work in works if any(span.work == work for span in spans)]
    rows = [row for work in kinds for row in sorted({_row(span) for span in spans if span.work == work})]
    data = [_trace(timeline, work, [span for span in spans if span.work == work], first_s) for work in kinds]
    layout = {
        "barmode": "overlay",
        "bargap": 0.25,
        "height": MARGIN_PIXELS + ROW_PIXELS * len(rows),
        "xaxis": {"title": {"text": "seconds since the first sweep began"}},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": rows[::-1]},
    }
    return [
        {
            "id": "timeline",
            "title": "Timeline",
            "note": _note(spans, len(told) - len(spans) + timeline.num_dropped),
            "data": data,
            "layout": layout,
        }
    ]


def _seconds(span: Span) -> float:
    return span.end_s - span.start_s


def _row(span: Span) -> str:
    return f"{span.work} {span.device}"


def _trace(timeline: Timeline, work: Work, spans: list[Span], first_s: float) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": work,
        "base": [round(span.start_s - first_s, 6) for span in spans],
        "x": [round(_seconds(span), 6) for span in spans],
        "y": [_row(span) for span in spans],
        "customdata": [
            f"layer {span.layer}, group {span.group}, sweep {span.sweep + 1} "
            f"({timeline.sweeps[span.sweep]}): {human_time(_seconds(span))}"
            for span in spans
        ],
        "hovertemplate": "%{y}, %{customdata}<extra></extra>",
        # An outline keeps what takes a millisecond visible; that of computing tells layers apart.
        "marker": {
            "color": COLOURS[work],
            "line": {"width": 1, "color": "card" if work == "compute" else COLOURS[work]},
        },
    }


def _note(spans: list[Span], num_left_out: int) -> str:
    shares = {work: sum(_seconds(span) for span in spans if span.work == work) for work in COLOURS}
    totals = ", ".join(f"{work} {human_time(seconds)}" for work, seconds in shares.items() if seconds)
    note = (
        f"In all {totals}. A bar is a layer; times are the host's. What a layer took to read and write "
        "hidden states is drawn from its start. Drag to zoom, double-click for all; timeline.json opens in "
        "Perfetto."
    )
    if num_left_out:
        note += f" The first {len(spans):,} bars are shown, {num_left_out:,} later ones are not."
    return note
