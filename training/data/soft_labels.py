"""What each option of a question should get: its answer, another model's probabilities, or a mixture.

Source of the temperature and of mixing soft with hard labels: Hinton, Vinyals and Dean 2015, Distilling the
Knowledge in a Neural Network, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from strata.engine.results.tables import read_scores
from strata.engine.types import InputError, Question


def read_soft_labels(
    path: Path, questions: Sequence[Question], *, temperature: float
) -> dict[str, np.ndarray]:
    """Another model's probabilities [O] float64 by question id.

    Args:
        path: the scores.parquet of a run on these questions (it may hold others too).
        questions: whose labels are wanted.
        temperature: probabilities become p^(1/temperature), normalized.

    Raises:
        InputError: a question that the file lacks, another number of options, or no probabilities.
    """
    rows = {row.question.id: row.probabilities for row in read_scores(path)}
    labels = {}
    for question in questions:
        where = f"--soft-labels: {path}, id {question.id!r}"
        if question.id not in rows:
            raise InputError(f"{where}: not there; expected a row for every question")
        probabilities = rows[question.id]
        if len(probabilities) != len(question.options):
            raise InputError(
                f"{where}: {len(probabilities)} options; the question has {len(question.options)}"
            )
        if not (np.isfinite(probabilities).all() and (probabilities >= 0).all() and probabilities.sum() > 0):
            raise InputError(f"{where}: {probabilities.tolist()}; expected probabilities")
        labels[question.id] = apply_temperature(probabilities, temperature)
    return labels


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / temperature) of probabilities [O], at least one of which is above 0."""
    # Relative to the largest, so that a small temperature does not take all of them to 0.
    powers = (probabilities / probabilities.max()) ** (1 / temperature)
    return powers / powers.sum()


def mix_labels(
    questions: Sequence[Question], soft: Mapping[str, np.ndarray], soft_weight: float
) -> list[np.ndarray]:
    """Labels [O] float64 a question: (1 - weight) one-hot answer + weight soft; the answer without any soft.

    A question without an answer has to have soft labels of weight 1.
    """
    labels = []
    for question in questions:
        weight = soft_weight if question.id in soft else 0.0
        mixed = np.zeros(len(question.options))
        if weight < 1:
            assert question.answer is not None
            mixed[question.answer] = 1 - weight
        if weight:
            mixed += weight * soft[question.id]
        labels.append(mixed)
    return labels
