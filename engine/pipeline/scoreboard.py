"""What every member has said so far, and what that makes of each question at any moment.

A question's answer is that of the last stage that reached it: blended with those before, or in their place.
Questions that nobody reached are guessed, so that there is an answer to every question from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from strata.engine.ensembles.combine import Combination, combine_scores
from strata.engine.ensembles.named_scores import name_scores, scores_of_member
from strata.engine.pipeline.config import Pipeline
from strata.engine.questions.metrics import evaluate
from strata.engine.results.tables import write_label_submission, write_submission
from strata.engine.run.position_bias import describe_position_bias
from strata.engine.run.unreached import UNREACHED, guess
from strata.engine.types import Question, QuestionScores, RunWarnings


@dataclass(kw_only=True, eq=False)
class Scoreboard:
    """Scores by member and question id.

    Attributes:
        pipeline: stages and what is averaged.
        questions: all, in the file's order.
        weights: of the members, by name.
        by_member: what each has said, by question id.
    """

    pipeline: Pipeline
    questions: Sequence[Question]
    weights: dict[str, float]
    by_member: dict[str, dict[str, QuestionScores]] = field(default_factory=dict)

    def add(self, names: Sequence[str], rows: Iterable[QuestionScores]) -> None:
        """Takes down what members that were scored together say; their rows are averages of several.

        Of a sweep that a deadline cut short, rows may be of some of the members.
        """
        for row in rows:
            is_one = len(names) == 1
            for name in names if is_one else [name for name in names if name in row.member_scores]:
                said = row if is_one else scores_of_member(row, name)
                self.by_member.setdefault(name, {})[row.question.id] = said

    def is_reached(self, question: Question, stage: int) -> bool:
        """Whether a member of the stage has scored the question."""
        return any(question.id in self.by_member.get(n, {}) for n in self.pipeline.stages[stage].members)

    def is_scored(self, question: Question) -> bool:
        """Whether any member has scored the question; else its answer is a guess."""
        return any(question.id in rows for rows in self.by_member.values())

    def answer(self, question: Question, last_stage: int | None = None) -> QuestionScores:
        """The answer to a question after some stages.

        Args:
            question: one of the questions.
            last_stage: leave out what later stages say; None for all.
        """
        heard: dict[str, QuestionScores] = {}
        stages = self.pipeline.stages
        for stage in stages if last_stage is None else stages[: last_stage + 1]:
            said = {
                name: self.by_member[name][question.id]
                for name in stage.members
                if question.id in self.by_member.get(name, {})
            }
            if said:
                heard = said if stage.replaces else heard | said
        if not heard:
            return guess(question)
        return self._combine(question, heard)

    def answers(self, last_stage: int | None = None) -> list[QuestionScores]:
        """The answers to all questions, in the file's order; see `answer`."""
        return [self.answer(question, last_stage) for question in self.questions]

    def write_submission(self, out: Path, kind: Literal["best", "probabilities"]) -> None:
        """Leaves a whole submission.csv of what is known now, in place of the one before.

        Raises:
            OutputError: it cannot be written.
        """
        write = write_submission if kind == "best" else write_label_submission
        write(out / "submission.csv", self.answers())

    def warn_of_unreached(self, warnings: RunWarnings) -> None:
        """Lists the questions whose answers are guesses."""
        missing = [question.id for question in self.questions if not self.is_scored(question)]
        if missing:
            warnings.rows[UNREACHED] = missing

    def describe_members(self) -> dict[str, dict[str, Any]]:
        """Of each member how many questions it scored, and how well where answers are known."""
        return {
            name: {
                "num_scored": len(rows),
                "metrics": evaluate(list(rows.values())),
                "position_bias": describe_position_bias(list(rows.values())),
            }
            for name, rows in self.by_member.items()
        }

    def _combine(self, question: Question, heard: dict[str, QuestionScores]) -> QuestionScores:
        first = replace(next(iter(heard.values())), question=question)
        if len(self.pipeline.members) == 1:
            return first
        everyone = {name: rows[question.id] for name, rows in self.by_member.items() if question.id in rows}
        named = name_scores(everyone)
        if len(heard) == 1:
            return replace(first, member_scores=named)
        combination = Combination(over=self.pipeline.ensemble.over, weights=self.weights)
        scores = combine_scores({name: row.scores for name, row in heard.items()}, combination)
        return QuestionScores(
            question=question, scores=scores, probabilities=np.exp(scores), member_scores=named
        )
