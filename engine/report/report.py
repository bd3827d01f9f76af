"""report.html: one self-contained page about a run, from its record, its scores and its timeline.

Everything a question, a record or a path says is text: the template escapes it, and the page's scripts put
it where no markup is read. Nothing is fetched: the page's own policy forbids it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strata.engine.files import write_bytes_atomically
from strata.engine.report.browser import Browser, cuts
from strata.engine.report.charts import answer_charts
from strata.engine.report.members import member_names, member_table, rows_before_debiasing, rows_by_member
from strata.engine.report.packed import pack_json
from strata.engine.report.page import render_page
from strata.engine.report.stages import stage_chart, stage_table
from strata.engine.report.summary import (
    compare_plan,
    describe_method,
    headline,
    odd_row,
    phase_shares,
    run_facts,
    title_of,
    warning_messages,
)
from strata.engine.report.timeline_chart import timeline_chart
from strata.engine.report.values import section, shorten
from strata.engine.results.tables import NUM_PREDICTED
from strata.engine.results.timeline import Timeline
from strata.engine.types import QuestionScores

MAX_BYTES = 4_900_000
NUM_LISTED = 20
MAX_PROMPT_CHARACTERS = 110


def leave_report(
    out: Path,
    record: Mapping[str, Any],
    scores: Sequence[QuestionScores],
    timeline: Timeline | None = None,
    contexts: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes report.html, and timeline.json where a sweep was noted.

    Args:
        out: The run's folder.
        record: What run.json holds (`RunRecord.as_dict()`); absent parts leave their section out.
        scores: What the run says of its questions, in the order of the file; may be empty.
        timeline: What sweeps did when.
        contexts: Contexts found for the questions, in the order of the file, by source.

    Raises:
        OutputError: If a file cannot be written.
    """
    timeline = Timeline() if timeline is None else timeline
    if timeline.spans:
        timeline.write(out / "timeline.json")
    # Lone surrogates, which JSON can smuggle into a prompt, have no UTF-8 form: they become question marks.
    html = render_report(record, scores, timeline, contexts).encode("utf-8", errors="replace")
    write_bytes_atomically(out / "report.html", html)


def render_report(
    record: Mapping[str, Any],
    scores: Sequence[QuestionScores],
    timeline: Timeline | None = None,
    contexts: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The page as text, at most MAX_BYTES; every value is escaped by the template engine, or packed."""
    measured = section(record, "measured")
    names = member_names(record)
    members = rows_by_member(names, scores)
    answers = answer_charts(scores, members, rows_before_debiasing(names, scores))
    charts = [*answers, *stage_chart(record), *timeline_chart(timeline or Timeline())]
    parts = {
        "method": describe_method(record),
        "status": record.get("status"),
        "error": section(record, "error"),
        "figures": [figure for figure in headline(record, scores) if figure.value],
        "answer_charts": answers,
        "sections": [("Members", member_table(record, members)), ("Stages", stage_table(record))],
        "comparison": compare_plan(section(record, "plan"), measured),
        "phases": phase_shares(section(measured, "seconds_by_phase")),
        "odd_rows": [odd_row(kind, row) for kind, row in section(record, "warnings", "rows").items()],
        "messages": warning_messages(record),
        "tables": question_tables(scores),
        "facts": list(run_facts(section(record, "run_info"))),
        "config": json.dumps(section(record, "run_info", "config"), indent=2, default=str),
    }
    title = title_of(record)
    num_bytes = len(render_page(title, charts, packed_questions="", **parts).encode(errors="replace"))
    browser = Browser(record=record, scores=scores, members=names, contexts=contexts or {})
    return render_page(title, charts, packed_questions=_fitting(browser, MAX_BYTES - num_bytes), **parts)


def _fitting(browser: Browser, num_bytes: int) -> str:
    """As much of the questions, packed, as there is room for."""
    for cut in cuts(len(browser.scores)):
        packed = pack_json(browser.payload(cut))
        if len(packed) <= num_bytes:
            break
    return packed


def question_tables(scores: Sequence[QuestionScores]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The first questions and, when there are more, the least certain ones, smallest margin first.

    What a page without scripts shows of the questions.
    """
    if not scores:
        return []
    if len(scores) <= NUM_LISTED:
        return [("Questions", [question_row(row) for row in scores])]
    unsure = sorted(scores, key=lambda row: row.margin)[:NUM_LISTED]
    return [
        (f"First {NUM_LISTED} questions", [question_row(row) for row in scores[:NUM_LISTED]]),
        (f"Least certain {NUM_LISTED} questions", [question_row(row) for row in unsure]),
    ]


def question_row(row: QuestionScores) -> dict[str, Any]:
    """What the tables show of a question; `rank` of the answer is 0 when it is not among the three best."""
    best, answer = row.order[:NUM_PREDICTED], row.question.answer
    name_of = row.question.name_of
    return {
        "id": row.question.id,
        "prompt": shorten(row.question.prompt, MAX_PROMPT_CHARACTERS),
        "best": [
            {"name": name_of(index), "probability": f"{row.probabilities[index]:.3f}"} for index in best
        ],
        "answer": None if answer is None else name_of(answer),
        "rank": best.index(answer) + 1 if answer in best else 0,
        "margin": f"{row.margin:.3f}",
    }
