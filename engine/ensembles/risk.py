"""The smallest share of least sure questions that a big model has to answer, at a risk that is bounded.

A cascade gives the share s of the questions that a small model is least sure of to the big one. Its loss on a
question against the big model everywhere is L = 1[big right] - 1[cascade right], one of -1, 0 and 1; its risk
R(s) = E[L] is the accuracy that is lost. Wanted: the smallest s with R(s) < r, at 90% confidence, from n
answered questions on which both were run.

Learn then test (Angelopoulos et al. 2021, Learn then test: calibrating predictive algorithms to achieve risk
control): each share s is a hypothesis R(s) >= r with a p-value; shares are
tested from large to small, each at level 10%, and the first that is not rejected ends it (fixed-sequence
testing). To choose a share with R(s) >= r, the first such in the sequence must be rejected wrongly, which has
probability of at most 10%: for any distribution and any n, whether R(s) falls with s or not.

The p-value is that of `betting`, of the rescaled loss x = (L + 1) / 2 in 0..1 and the mean m = (r + 1) / 2.
Questions that the small model gets right and the big one wrong count as the gains they are. It adapts to the
variance, which is small here, since most L are 0; Hoeffding-Bentkus does not: x has its mean near 1/2, where
a binomial's variance is largest. That nothing is lost at s = 1, where the big model replaces, needs no test.

A share becomes a limit of doubt by the questions that are to be answered: the doubt of the last one taken.
These have to be others than the n answered ones, so that limits do not depend on what they are tested with;
both have to be drawn alike. Where a limit cuts through a tie, an answered question of that doubt counts as
whichever of taken and not taken loses more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strata.engine.ensembles.aligned import align_members
from strata.engine.ensembles.betting import p_value_of_mean_at_least
from strata.engine.ensembles.rules import Measure, count_taken, doubts
from strata.engine.types import InputError, QuestionScores

CONFIDENCE = 0.9
NUM_SHARES = 100
"""Shares are multiples of 1%."""
SMALL, BIG, TAKEN = "small", "big", "taken"


@dataclass(frozen=True, kw_only=True, eq=False)
class CascadeSample:
    """Answered questions [n] on which both models were run.

    Attributes:
        doubts: [n] of the small model, larger where it is less sure.
        small_right: [n] whether the small model is right.
        big_right: [n] whether the big one is.
        taken_right: [n] whether the cascade would be, had it taken the question: `big_right` where the big
            model replaces the small one, else of what the two are blended to.
    """

    doubts: np.ndarray
    small_right: np.ndarray
    big_right: np.ndarray
    taken_right: np.ndarray


@dataclass(frozen=True, kw_only=True)
class RiskChoice:
    """A share, and what it was chosen by.

    Attributes:
        share: 0..1 of the questions to be answered, the least sure ones, in whole percent.
        is_certified: the risk is below `risk` at this confidence; False where not even share 1 passes, which
            is possible where answers are blended.
        risk: r, a fraction of questions.
        confidence: 1 minus the probability that the risk is not below r after all.
        num_questions: n.
        observed_loss: mean loss at this share on the n questions; ties of doubt count against it.
        small_accuracy: of the small model on them.
        big_accuracy: of the big one.
    """

    share: float
    is_certified: bool
    risk: float
    confidence: float
    num_questions: int
    observed_loss: float
    small_accuracy: float
    big_accuracy: float


def smallest_share(
    small: Sequence[QuestionScores],
    big: Sequence[QuestionScores],
    to_answer: Sequence[QuestionScores],
    *,
    risk: float,
    confidence: float = CONFIDENCE,
    by: Measure = "margin",
    taken: Sequence[QuestionScores] | None = None,
    seed: int = 0,
) -> RiskChoice:
    """Chooses the share of `to_answer` that goes to the big model.

    Args:
        small: the small model's results of answered questions.
        big: the big one's of the same; questions are matched by id, those without an answer left out.
        to_answer: the small model's results of the questions to be answered, none of them among the others.
        risk: r, between 0 and 1.
        confidence: between 0 and 1.
        by: the measure of doubt.
        taken: what the cascade says of the answered questions where it takes them; None is the big model's.
        seed: of the order in which the p-value sees the questions.

    Raises:
        InputError: risk or confidence is out of bounds, no answer is known, a model lacks a question, or
            there is nothing to answer.
    """
    for name, value in (("risk", risk), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"{name}: {value}; expected a number between 0 and 1")
    if not to_answer:
        raise InputError("no question to be answered; expected at least one")
    sample = sample_of(small, big, big if taken is None else taken, by)
    target = doubts(to_answer, by)
    share, is_certified = certify_share(
        sample, target, risk=risk, confidence=confidence, replaces=taken is None, seed=seed
    )
    return RiskChoice(
        share=share,
        is_certified=is_certified,
        risk=risk,
        confidence=confidence,
        num_questions=len(sample.doubts),
        observed_loss=float(losses_at(sample, target, share).mean()),
        small_accuracy=float(sample.small_right.mean()),
        big_accuracy=float(sample.big_right.mean()),
    )


def certify_share(
    sample: CascadeSample,
    target: np.ndarray,
    *,
    risk: float,
    confidence: float = CONFIDENCE,
    replaces: bool,
    seed: int = 0,
) -> tuple[float, bool]:
    """Tests shares from 1 downwards; the last one before the first that fails, and whether any passed.

    Args:
        sample: answered questions.
        target: [N] doubts of the questions to be answered.
        risk: r.
        confidence: 1 minus the level of each test.
        replaces: a question that is taken has the big model's own answer, so taking all loses nothing.
        seed: of the order in which the p-value sees the questions, which knows nothing of them: files are
            often sorted.
    """
    order = np.random.default_rng(seed).permutation(len(sample.doubts))
    level = 1 - confidence
    chosen, is_certified = 1.0, replaces
    for percent in range(NUM_SHARES, -1, -1):
        share = percent / NUM_SHARES
        if replaces and count_taken(share, len(target)) == len(target):
            continue
        rescaled = (losses_at(sample, target, share)[order] + 1) / 2
        if p_value_of_mean_at_least(rescaled, (risk + 1) / 2, level=level) > level:
            break
        chosen, is_certified = share, True
    return chosen, is_certified


def losses_at(sample: CascadeSample, target: np.ndarray, share: float) -> np.ndarray:
    """[n] losses -1, 0 or 1 of the cascade that takes this share of questions of doubts `target`."""
    if_taken = sample.big_right.astype(np.float64) - sample.taken_right
    if_not = sample.big_right.astype(np.float64) - sample.small_right
    num_taken = count_taken(share, len(target))
    if num_taken == 0:
        return if_not
    if num_taken == len(target):
        return if_taken
    ranked = np.sort(target)[::-1]
    limit, next_one = ranked[num_taken - 1], ranked[num_taken]
    losses = np.where(sample.doubts >= limit, if_taken, if_not)
    is_cut = (sample.doubts == limit) & (limit == next_one)
    return np.where(is_cut, np.maximum(if_taken, if_not), losses)


def sample_of(
    small: Sequence[QuestionScores],
    big: Sequence[QuestionScores],
    taken: Sequence[QuestionScores],
    by: Measure,
) -> CascadeSample:
    """The answered questions, matched by id.

    Raises:
        InputError: no answer is known, or one of the three lacks a question.
    """
    aligned = [
        found
        for found in align_members({SMALL: small, BIG: big, TAKEN: taken})
        if found.question.answer is not None
    ]
    for found in aligned:
        if len(found.rows) < 3:
            lacking = next(name for name in (SMALL, BIG, TAKEN) if name not in found.rows)
            raise InputError(
                f"question {found.question.id!r}: no scores of the {lacking} model; expected both"
            )
    if not aligned:
        raise InputError("no question with a known answer; expected some on which both models were run")
    right = {
        name: np.array([found.rows[name].order[0] == found.question.answer for found in aligned])
        for name in (SMALL, BIG, TAKEN)
    }
    return CascadeSample(
        doubts=doubts([found.rows[SMALL] for found in aligned], by),
        small_right=right[SMALL],
        big_right=right[BIG],
        taken_right=right[TAKEN],
    )
