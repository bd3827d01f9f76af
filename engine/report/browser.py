"""What the page's question browser knows of every question, as plain values.

Texts are cut, and in the end questions left out, where the page would become too large; `told` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strata.engine.report.charts import verdict
from strata.engine.report.stages import last_stage, stage_names
from strata.engine.report.values import is_number
from strata.engine.types import Question, QuestionScores

DIGITS = 4
CONTEXT_CHARACTERS = (6000, 3000, 1500, 1000, 600, 300, 0)
MAX_QUESTIONS = 20_000
"""What a browser filters and sorts while one types, and what is packed in seconds."""
LEAST_CHARACTERS = 400
"""To which prompts and options are cut, at most."""


@dataclass(frozen=True, kw_only=True)
class PageCut:
    """How much of the questions is shown: characters of a text and of a context, and how many questions."""

    text_characters: int
    context_characters: int
    num_questions: int

    def told(self, scores: Sequence[QuestionScores], num_contexts_cut: int) -> str:
        """A sentence about what is left out; empty where nothing is."""
        parts = []
        if num_contexts_cut:
            parts.append(
                f"{num_contexts_cut:,} long text(s) are cut, "
                f"contexts at {self.context_characters:,} characters"
            )
        if self.num_questions < len(scores):
            parts.append(f"the first {self.num_questions:,} of {len(scores):,} questions are listed")
        return f"To keep this page small, {' and '.join(parts)}." if parts else ""


def cuts(num_questions: int) -> Iterator[PageCut]:
    """Ever smaller ones, for so many questions; the last shows none."""
    num_questions = min(num_questions, MAX_QUESTIONS)
    for characters in CONTEXT_CHARACTERS:
        text = max(characters, LEAST_CHARACTERS)
        yield PageCut(text_characters=text, context_characters=characters, num_questions=num_questions)
    while num_questions:
        num_questions //= 2
        yield PageCut(text_characters=LEAST_CHARACTERS, context_characters=0, num_questions=num_questions)


@dataclass(frozen=True, kw_only=True)
class Browser:
    """What is shown of a run's questions.

    Attributes:
        record: what run.json holds.
        scores: the run's, in the file's order.
        members: names of the members.
        contexts: further contexts, a list in the file's order by source.
    """

    record: Mapping[str, Any]
    scores: Sequence[QuestionScores]
    members: Sequence[str]
    contexts: Mapping[str, Sequence[str]]

    def payload(self, cut: PageCut) -> dict[str, Any]:
        """Plain values, ready for JSON: finite numbers and texts."""
        shortened = _Shortened(cut)
        names = self.members if len(self.members) > 1 else []
        questions = [
            self._question(place, row, names, shortened)
            for place, row in enumerate(self.scores[: cut.num_questions])
        ]
        return {
            "members": list(names),
            "stages": stage_names(self.record),
            "told": cut.told(self.scores, shortened.num_cut),
            "questions": questions,
        }

    def _question(
        self, place: int, row: QuestionScores, names: Sequence[str], shortened: _Shortened
    ) -> dict[str, Any]:
        question = row.question
        said = {name: _finite(row.member_scores[name]) for name in names if name in row.member_scores}
        stage = last_stage(self.record, said) if names else None
        return {
            "id": question.id,
            "prompt": shortened.text(question.prompt),
            "names": [question.name_of(option) for option in range(len(question.options))],
            "options": [] if question.is_text else [shortened.text(option) for option in question.options],
            "answer": question.answer,
            "verdict": verdict(row),
            "order": list(row.order),
            "probabilities": _finite(row.probabilities),
            "scores": _finite(row.scores),
            "margin": round(row.margin, DIGITS) if np.isfinite(row.margin) else None,
            "stage": stage,
            "members": said,
            "contexts": list(self._contexts(place, question, shortened)),
        }

    def _contexts(self, place: int, question: Question, shortened: _Shortened) -> Iterator[tuple[str, str]]:
        own = {"context": question.context} | dict(question.contexts)
        found = {name: texts[place] for name, texts in self.contexts.items()}
        for name, text in (own | found).items():
            if text:
                yield name, shortened.context(text)


@dataclass
class _Shortened:
    """Texts as a cut has them, and how many were too long."""

    cut: PageCut
    num_cut: int = 0

    def text(self, text: str) -> str:
        return self._shorten(text, self.cut.text_characters)

    def context(self, text: str) -> str:
        return self._shorten(text, self.cut.context_characters)

    def _shorten(self, text: str, num_characters: int) -> str:
        if len(text) <= num_characters:
            return text
        self.num_cut += 1
        return text[:num_characters] + " ..."


def _finite(values: Sequence[float] | np.ndarray) -> list[float | None]:
    rounded = [round(float(value), DIGITS) for value in values]
    return [value if is_number(value) and np.isfinite(value) else None for value in rounded]
