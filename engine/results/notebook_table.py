"""Scores of questions as a notebook shows them: a table.

Knows HTML, and no notebook: whatever calls `_repr_html_` shows it. Texts of questions are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from strata.engine.types import QuestionScores

MAX_ROWS = 50
MAX_CHARACTERS = 120
RIGHT, WRONG = "\u2713", "\u2717"


class ScoredQuestions(list[QuestionScores]):
    """A list of scores, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        """The first questions, a row each, and how many of the answered ones are right."""
        rows = [_describe(row) for row in self[:MAX_ROWS]]
        return _table(("id", "question", "best", "probability", ""), rows) + f"<p>{escape(self._count())}</p>"

    def _count(self) -> str:
        answered = [row for row in self if row.question.answer is not None]
        told = f"{len(self)} question(s)"
        if answered:
            right = sum(row.order[0] == row.question.answer for row in answered)
            told += f", {right} of {len(answered)} answered ones right"
        return told + (f"; the first {MAX_ROWS} are shown" if len(self) > MAX_ROWS else "")


def _describe(row: QuestionScores) -> tuple[str, ...]:
    question, best = row.question, row.order[0]
    shown = f"{question.name_of(best)}: {question.options[best]}"
    if question.is_text:
        shown = question.options[best]
    mark = "" if question.answer is None else RIGHT if best == question.answer else WRONG
    return (question.id, question.prompt, shown, f"{row.probabilities[best]:.3f}", mark)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    return escape(text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "\u2026")
