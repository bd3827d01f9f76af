"""Members' scores of a question as one, by weights, over probabilities, logits or ranks.

Legend: M members, O options. With weights w that sum to 1 over the members that have the question:

- `probabilities`: p = sum of w_m p_m, the linear opinion pool;
- `logits`: log p = sum of w_m log p_m, made to sum to 1, the logarithmic opinion pool (a product of powers);
- `ranks`: the linear pool of Borda counts: an option of rank r (1 is best, ties share their mean rank) has
  2 (O - r + 1/2) / O^2, which sums to 1 over the options, is never 0, and orders them by mean rank.

Sources: Genest and Zidek 1986, Combining probability distributions: a critique and an annotated bibliography
(both pools); Dwork et al. 2001, Rank aggregation methods for the web (Borda's count).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from pydantic import Field

from strata.engine.calibration.answered import MIN_LOG_PROBABILITY
from strata.engine.ensembles.aligned import AlignedQuestion, align_members
from strata.engine.ensembles.named_scores import name_scores
from strata.engine.heads.probabilities import log_softmax
from strata.engine.json_files import Schema, check_schema, shown
from strata.engine.types import InputError, QuestionScores

Scale = Literal["probabilities", "logits", "ranks"]


class CombinationSchema(Schema):
    """What `Combination.as_dict` gives."""

    over: Scale
    weights: dict[str, float] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How members become one.

    Attributes:
        over: what is averaged.
        weights: by member; none below 0, one above it. They need not sum to 1.
    """

    over: Scale = "probabilities"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.over not in get_args(Scale):
            raise InputError(f"over: {shown(self.over)}; expected {', '.join(get_args(Scale))}")
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"weight of member {name!r}: {weight}; expected a number of at least 0")
        if not any(self.weights.values()):
            raise InputError("weights: all are 0; expected one above 0")

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values, from which `from_dict` makes an equal object."""
        return {"over": self.over, "weights": dict(self.weights)}

    @classmethod
    def from_dict(cls, content: object, where: str) -> Combination:
        """The object of what `as_dict` gave; InputError names `where` and the key that does not fit."""
        read = check_schema(CombinationSchema, content, where)
        try:
            return cls(over=read.over, weights=read.weights)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def uniform(names: Sequence[str], over: Scale = "probabilities") -> Combination:
    """Equal weights that sum to 1."""
    return Combination(over=over, weights={name: 1 / len(names) for name in names})


def combine_scores(scores: Mapping[str, np.ndarray], combination: Combination) -> np.ndarray:
    """One question's log-probabilities from several members' scores.

    Args:
        scores: by member, [O] log-probabilities or logits each; members that lack the question are not in it,
            and names without a weight are not looked at.
        combination: the weights; those of the members that are there are made to sum to 1. Where all of these
            are 0, they count alike.

    Returns:
        [O] float64, their exponentials summing to 1.

    Raises:
        InputError: no member with a weight has the question.
        ValueError: a score is NaN or plus infinity, or all of a member's are minus infinity.
    """
    names = [name for name in combination.weights if name in scores]
    if not names:
        raise InputError(f"no member has the question; expected one of {', '.join(combination.weights)}")
    given = np.array([combination.weights[name] for name in names], dtype=np.float64)
    weights = given / given.sum() if given.any() else np.full(len(names), 1 / len(names))
    # A weight of 0 takes its member out: 0 times minus infinity is NaN.
    taking_part = np.flatnonzero(weights)
    opinions = np.stack([log_opinion(scores[names[place]], combination.over) for place in taking_part])
    return pool_opinions(opinions, weights[taking_part], combination.over)


def log_opinion(scores: np.ndarray, over: Scale) -> np.ndarray:
    """What of a member's scores [O] is averaged: [O] logarithms of probabilities or of Borda counts."""
    if over == "ranks":
        return _log_borda(scores)
    log_probabilities = log_softmax(scores)
    # Else one member's 0 would be a veto, and two vetoes could leave nothing.
    return np.maximum(log_probabilities, MIN_LOG_PROBABILITY) if over == "logits" else log_probabilities


def pool_opinions(opinions: np.ndarray, weights: np.ndarray, over: Scale) -> np.ndarray:
    """The pool [O] of opinions [M, O] by weights [M] that are above 0 and sum to 1."""
    if over == "logits":
        return log_softmax(weights @ opinions)
    return np.logaddexp.reduce(np.log(weights)[:, None] + opinions, axis=0)


def _log_borda(scores: np.ndarray) -> np.ndarray:
    if np.isnan(scores).any():
        raise ValueError("expected one number an option; got NaN")
    num_better = (scores > scores[:, None]).sum(axis=1)
    num_equal = (scores == scores[:, None]).sum(axis=1)
    # The mean rank of those that tie is num_better + (num_equal + 1) / 2.
    return np.log(2 * (len(scores) - num_better - num_equal / 2) / len(scores) ** 2)


def combine_members(
    members: Mapping[str, Sequence[QuestionScores]], combination: Combination
) -> list[QuestionScores]:
    """One result a question from several members, each question once, in the order in which they come up.

    Each member's scores are kept by `name_scores`.

    Raises:
        InputError: a member has no weight, two members differ in a question's options, or no member has it.
    """
    for name in members:
        if name not in combination.weights:
            raise InputError(
                f"member {name!r} has no weight; expected one of {', '.join(combination.weights)}"
            )
    return [_combine_question(aligned, combination) for aligned in align_members(members)]


def _combine_question(aligned: AlignedQuestion, combination: Combination) -> QuestionScores:
    scores = combine_scores({name: row.scores for name, row in aligned.rows.items()}, combination)
    return QuestionScores(
        question=aligned.question,
        scores=scores,
        probabilities=np.exp(scores),
        member_scores=name_scores(aligned.rows),
    )
