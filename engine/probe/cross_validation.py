"""How well a linear probe of each layer answers questions that it was not fitted on. Knows no models.

A probe is ridge regression on standardized readouts, its strength chosen by leave-one-out on the questions it
is fitted on: for options, of whether each is right (a question's best scores highest); for texts, of each
label. Source: Alain and Bengio 2016, Understanding intermediate layers using linear classifier probes.
Legend: Q questions, n rows of all of them, D model dim, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strata.engine.questions.metrics import accuracy, map_at_k
from strata.engine.types import InputError, Question

ENOUGH = 0.99
"""Share of the last layer's MAP@3 that is as good as all of it."""
ALPHAS = tuple(float(10**power) for power in range(-1, 7))
"""Ridge strengths to choose from."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What a probe after so many layers reached, by questions that it was not fitted on."""

    layers: int
    map_at_3: float
    accuracy: float


def enough_layers(reports: Sequence[LayerReport]) -> int:
    """The fewest layers that reach ENOUGH of what all layers reach."""
    wanted = ENOUGH * reports[-1].map_at_3
    return next(report.layers for report in reports if report.map_at_3 >= wanted)


def probe_layers(
    questions: Sequence[Question], states: np.ndarray, *, folds: int, seed: int
) -> list[LayerReport]:
    """Cross-validates a probe a layer.

    Args:
        questions: [Q] answered; texts have one row each, other questions one an option.
        states: [layers, n, D] float32, a question's rows after another's.
        folds: parts; every question is in one.
        seed: of the parts.
    """
    answers = [question.answer for question in questions if question.answer is not None]
    assert len(answers) == len(questions), "every question is answered"
    parts = cut_into_folds(len(questions), folds, seed)
    reports = []
    for layer, states_nD in enumerate(states):
        orders: dict[int, Sequence[int]] = {}
        for held_out in parts:
            scores = _score_held_out(questions, states_nD, held_out)
            orders |= {place: np.argsort(-row, kind="stable").tolist() for place, row in scores.items()}
        ordered = [orders[place] for place in range(len(questions))]
        reports.append(
            LayerReport(
                layers=layer + 1, map_at_3=map_at_k(ordered, answers), accuracy=accuracy(ordered, answers)
            )
        )
    return reports


def cut_into_folds(num_questions: int, folds: int, seed: int) -> list[np.ndarray]:
    """Places of the questions of each part, shuffled, their numbers as even as can be."""
    return np.array_split(np.random.default_rng(seed).permutation(num_questions), folds)


def _score_held_out(
    questions: Sequence[Question], states_nD: np.ndarray, held_out: np.ndarray
) -> dict[int, np.ndarray]:
    """Scores [O] of the questions of one part, by a probe that was fitted on all others."""
    counts = [1 if question.is_text else len(question.options) for question in questions]
    owners = np.repeat(np.arange(len(questions)), counts)
    is_held_out = np.isin(owners, held_out)
    wanted = _targets(questions)
    probe = _make_probe().fit(states_nD[~is_held_out], wanted[~is_held_out])
    predicted = np.asarray(probe.predict(states_nD[is_held_out]))
    rows_of = owners[is_held_out]
    if questions[0].is_text:
        names = _names(questions)
        return {
            int(place): predicted[rows_of == place][0][[names[name] for name in questions[place].options]]
            for place in held_out
        }
    return {int(place): predicted[rows_of == place].reshape(-1) for place in held_out}


def _targets(questions: Sequence[Question]) -> np.ndarray:
    """[n] whether each option is right, or [n, L] one-hot labels of texts."""
    if not questions[0].is_text:
        flags = [np.arange(len(question.options)) == question.answer for question in questions]
        return np.concatenate(flags).astype(np.float64)
    names = _names(questions)
    return np.eye(len(names))[[names[question.options[question.answer or 0]] for question in questions]]


def _names(questions: Sequence[Question]) -> dict[str, int]:
    names = dict.fromkeys(name for question in questions for name in question.options)
    return {name: index for index, name in enumerate(names)}


def check_installed() -> None:
    """Raises InputError where scikit-learn, which fits the probes, is not installed."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError:
        raise InputError(
            'strata probe needs scikit-learn; expected pip install "strata-score[retrieval]"'
        ) from None


def _make_probe() -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS))
