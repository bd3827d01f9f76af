"""Probabilities of labels as columns of a table, one a label. Knows no file."""

from __future__ import annotations

from collections.abc import Sequence

from strata.engine.types import QuestionScores


def label_probabilities(scores: Sequence[QuestionScores]) -> dict[str, list[float | None]]:
    """For every label that any text may get, in order of first appearance, its probability in each row.

    None where a row may not get the label. Empty for questions whose options are no labels.
    """
    return _columns(scores, [row.question.is_text for row in scores])


def named_probabilities(scores: Sequence[QuestionScores]) -> dict[str, list[float | None]]:
    """The same for all that results call options: labels of texts, letters of questions."""
    return _columns(scores, [True] * len(scores))


def _columns(scores: Sequence[QuestionScores], kept: Sequence[bool]) -> dict[str, list[float | None]]:
    columns: dict[str, list[float | None]] = {}
    for place, (row, is_kept) in enumerate(zip(scores, kept, strict=True)):
        for option, probability in enumerate(row.probabilities.tolist() if is_kept else ()):
            name = row.question.name_of(option)
            columns.setdefault(name, [None] * len(scores))[place] = probability
    return columns
