"""Questions that the deadline left out: guessed, and listed in the warnings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.engine.heads.probabilities import option_probabilities
from strata.engine.questions.metrics import longest_option_order
from strata.engine.types import Question, QuestionScores, RunWarnings

UNREACHED = "not scored before the deadline"


def collect_scores(
    questions: Sequence[Question], reached: Sequence[QuestionScores], warnings: RunWarnings
) -> list[QuestionScores]:
    """Scores in the file's order, guesses for the questions that the deadline left out."""
    by_id = {row.question.id: row for row in reached}
    missing = [question.id for question in questions if question.id not in by_id]
    if missing:
        warnings.rows[UNREACHED] = missing
    return [by_id[question.id] if question.id in by_id else guess(question) for question in questions]


def guess(question: Question) -> QuestionScores:
    """A question nobody scored: the longest option first, all options all but equally probable.

    Labels of a text stay as they are: the length of a name says nothing.
    """
    scores = np.empty(len(question.options))
    order = range(len(question.options)) if question.is_text else longest_option_order(question)
    scores[list(order)] = -1e-6 * np.arange(len(question.options))
    return QuestionScores(question=question, scores=scores, probabilities=option_probabilities(scores))
