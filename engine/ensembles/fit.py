"""Weights of members fitted on answered questions, and whether they are worth it on others.

Weights w >= 0 that sum to 1 minimise the mean negative log-likelihood of the pool (`combine`), by sequential
quadratic programming (SLSQP: Kraft 1988, A software package for sequential quadratic programming). Where
every member has every question, the loss is convex in w for each of the three pools. Whether to use the
weights is decided by cross-validation: in each of K folds, weights fitted on the others are tried on it.
Source of stacking by cross-validation with weights of this kind: Breiman 1996, Stacked regressions; of the
log score: Yao et al. 2018, Using stacking to average Bayesian predictive distributions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from strata.engine.calibration.answered import pad_scores
from strata.engine.calibration.reliability import negative_log_likelihood
from strata.engine.ensembles.aligned import AlignedQuestion, align_members
from strata.engine.ensembles.combine import Combination, Scale, combine_scores, uniform
from strata.engine.ensembles.pool_loss import PoolLoss, pool_loss_of
from strata.engine.questions.metrics import accuracy, map_at_k
from strata.engine.types import InputError, QuestionScores

MIN_WEIGHT = 1e-3
"""A member that would get less is left out, and need not be run at all; unless it is all a question has."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a way of combining reached on questions that it was not fitted on: nats, and fractions."""

    nll: float
    accuracy: float
    map_at_3: float


@dataclass(frozen=True, kw_only=True)
class FittedWeights:
    """Weights to use, and the figures that they were chosen by.

    Attributes:
        combination: fitted weights, or equal ones.
        is_fitted: which of the two.
        reason: why, in one line.
        num_questions: answered questions that they were fitted on.
        num_folds: of the cross-validation; 0 where there was none.
        fitted: cross-validated; None where there was none.
        uniform: equal weights.
        best_single: the member of least negative log-likelihood, chosen anew on the other folds for each.
        members: each member alone.
    """

    combination: Combination
    is_fitted: bool
    reason: str
    num_questions: int
    num_folds: int
    fitted: HeldOut | None
    uniform: HeldOut
    best_single: HeldOut
    members: Mapping[str, HeldOut]

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values, for the record of a run."""
        return asdict(self)


def fit_weights(
    members: Mapping[str, Sequence[QuestionScores]],
    *,
    over: Scale = "probabilities",
    folds: int = 5,
    seed: int = 0,
) -> FittedWeights:
    """Fits weights on the questions whose answer is known; equal ones where those are no better.

    Args:
        members: by name; a member may lack questions, whose weights are then shared by the others.
        over: what is averaged.
        folds: K, at least 2; fewer where there are fewer questions.
        seed: of the folds.

    Raises:
        InputError: no answer is known, a member has no answered question, or folds is below 2.
    """
    if folds < 2:
        raise InputError(f"folds: {folds}; expected at least 2")
    questions = [found for found in align_members(members) if found.question.answer is not None]
    for name in members:
        if not any(name in found.rows for found in questions):
            raise InputError(f"member {name!r} has no answered question; expected one to fit its weight on")
    names = list(members)
    alike = uniform(names, over)
    num_folds = min(folds, len(questions)) if len(names) > 1 and len(questions) > 1 else 0
    parts = np.array_split(np.random.default_rng(seed).permutation(len(questions)), max(num_folds, 1))
    singles = {name: _combined(questions, _only(name, alike)) for name in names}
    of_uniform = _measure(questions, _combined(questions, alike))
    fitted = _cross_validate(questions, parts, alike) if num_folds else None
    is_fitted = fitted is not None and fitted.nll < of_uniform.nll
    return FittedWeights(
        combination=_fit(questions, alike) if is_fitted else alike,
        is_fitted=is_fitted,
        reason=_reason(fitted, of_uniform, len(names)),
        num_questions=len(questions),
        num_folds=num_folds,
        fitted=fitted,
        uniform=of_uniform,
        best_single=_measure(questions, _best_singles(questions, parts, singles)),
        members={name: _measure(questions, rows) for name, rows in singles.items()},
    )


def _fit(questions: Sequence[AlignedQuestion], start: Combination) -> Combination:
    """The weights of least loss, from equal ones on."""
    from scipy.optimize import minimize

    names = list(start.weights)
    loss: PoolLoss = pool_loss_of(questions, names, start.over)
    found = minimize(
        loss.value_and_gradient,
        x0=np.full(len(names), 1 / len(names)),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(names),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 500},
    )
    weights = np.clip(found.x, 0.0, 1.0)
    kept = weights >= MIN_WEIGHT
    is_heard = [any(kept[names.index(name)] for name in question.rows) for question in questions]
    if all(is_heard):
        weights = np.where(kept, weights, 0.0)
    weights /= weights.sum()
    return Combination(over=start.over, weights=dict(zip(names, weights.tolist(), strict=True)))


def _cross_validate(
    questions: Sequence[AlignedQuestion], parts: Sequence[np.ndarray], start: Combination
) -> HeldOut:
    """What weights that are fitted on the other folds reach on each."""
    held_out: dict[int, np.ndarray] = {}
    for part in parts:
        others = np.setdiff1d(np.arange(len(questions)), part)
        fitted = _fit([questions[place] for place in others], start)
        held_out |= dict(zip(part.tolist(), _combined([questions[p] for p in part], fitted), strict=True))
    return _measure(questions, [held_out[place] for place in range(len(questions))])


def _best_singles(
    questions: Sequence[AlignedQuestion],
    parts: Sequence[np.ndarray],
    singles: Mapping[str, list[np.ndarray]],
) -> list[np.ndarray]:
    """[Q] of [O]: of each fold's questions, what the member says that is best on the other folds."""
    losses = {name: _losses(questions, rows) for name, rows in singles.items()}
    chosen = list(next(iter(singles.values())))
    for part in parts:
        others = np.setdiff1d(np.arange(len(questions)), part) if len(parts) > 1 else part
        best = min(singles, key=lambda name: losses[name][others].mean())
        for place in part:
            chosen[place] = singles[best][place]
    return chosen


def _only(name: str, combination: Combination) -> Combination:
    """One member alone; of a question that it lacks the others, alike."""
    weights = {other: float(other == name) for other in combination.weights}
    return Combination(over=combination.over, weights=weights)


def _combined(questions: Sequence[AlignedQuestion], combination: Combination) -> list[np.ndarray]:
    return [
        combine_scores({name: row.scores for name, row in found.rows.items()}, combination)
        for found in questions
    ]


def _answers(questions: Sequence[AlignedQuestion]) -> list[int]:
    return [found.question.answer for found in questions if found.question.answer is not None]


def _losses(questions: Sequence[AlignedQuestion], scores: Sequence[np.ndarray]) -> np.ndarray:
    return -pad_scores(scores, _answers(questions)).of_answers


def _measure(questions: Sequence[AlignedQuestion], scores: Sequence[np.ndarray]) -> HeldOut:
    answers = _answers(questions)
    orders = [np.argsort(-row, kind="stable").tolist() for row in scores]
    return HeldOut(
        nll=negative_log_likelihood(pad_scores(scores, answers)),
        accuracy=accuracy(orders, answers),
        map_at_3=map_at_k(orders, answers),
    )


def _reason(fitted: HeldOut | None, alike: HeldOut, num_members: int) -> str:
    if fitted is None:
        return "one member" if num_members == 1 else "one answered question: too few to cross-validate"
    told = f"cross-validated NLL {fitted.nll:.4f} fitted, {alike.nll:.4f} with equal weights"
    return told if fitted.nll < alike.nll else f"equal weights: fitted ones are no better ({told})"
