"""Probabilities of labels as columns of a table, one a label. Knows no file."""

from __future__ import annotations

from collections.abc import Sequence

from strata.engine.types import QuestionScores


def label_probabilities(scores: Sequence[QuestionScores]) -> dict[str, list[float | None]]:
    """For every label that any text may get, in order of first appearance, its probability in each row.

    None where a row may not get the label. Empty for questions whose options are no labels.
    """
    labels = dict.fromkeys(name for row in scores if row.question.is_text for name in row.question.options)
    columns: dict[str, list[float | None]] = {name: [None] * len(scores) for name in labels}
    for place, row in enumerate(scores):
        if row.question.is_text:
            for name, probability in zip(row.question.options, row.probabilities.tolist(), strict=True):
                columns[name][place] = probability
    return columns
