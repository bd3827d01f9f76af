"""The page that every report is: template, style, scripts, plotly and figures in one file, no network."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from strata.engine.report.charts import Chart
from strata.engine.report.packed import pack_json, packed_plotly

TEMPLATE = "report.html.jinja"
SCRIPTS = ("elements.js", "charts.js", "detail.js", "browser.js", "start.js")
NO_QUESTIONS: Mapping[str, Any] = {"members": [], "stages": [], "told": "", "questions": []}
"""What the question browser is given where there are none."""
PARTS: Mapping[str, Any] = {
    "status": None,
    "error": {},
    "method": [],
    "figures": [],
    "messages": [],
    "odd_rows": [],
    "heading": "Answers",
    "answer_charts": [],
    "sections": [],
    "comparison": [],
    "phases": [],
    "tables": [],
    "facts": [],
    "config": "",
}
"""Parts of a page that may be left out."""


def render_page(
    title: str, charts: Sequence[Chart], *, packed_questions: str | None = None, **parts: Any
) -> str:
    """The page as text; every value is escaped by the template engine, or packed.

    Args:
        title: what the page is about.
        charts: all its figures.
        packed_questions: for the question browser, from `pack_json`; None for no questions.
        parts: of PARTS, those that the page has.
    """
    return _template().render(
        **{**PARTS, **parts},
        title=title,
        charts={chart["id"]: chart for chart in charts},
        style=_asset("report.css"),
        scripts=[_asset(name) for name in SCRIPTS],
        plotly=packed_plotly(),
        packed_charts=pack_json(charts),
        packed_questions=pack_json(NO_QUESTIONS) if packed_questions is None else packed_questions,
    )


@functools.cache
def _template() -> Template:
    # autoescape is on for every template: Jinja's own choice by file name would leave `.jinja` unescaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


@functools.cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
