"""How often members give the same answer, and whether they err on the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strata.engine.ensembles.aligned import align_members
from strata.engine.types import QuestionScores


@dataclass(frozen=True, kw_only=True, eq=False)
class MemberAgreement:
    """Of each pair of members [M, M], on the questions that both have.

    Attributes:
        names: [M].
        num_questions: that both have.
        same_answer: share of them with the same best option; NaN where there are none.
        num_answered: of them, questions whose answer is known.
        error_correlation: Pearson correlation of being wrong on those (the phi coefficient); near 0, members
            err apart and gain by being averaged. NaN where one is always right or always wrong.
    """

    names: tuple[str, ...]
    num_questions: np.ndarray
    same_answer: np.ndarray
    num_answered: np.ndarray
    error_correlation: np.ndarray


def measure_agreement(members: Mapping[str, Sequence[QuestionScores]]) -> MemberAgreement:
    """Compares every two members; raises as `align_members` does."""
    aligned = align_members(members)
    names = tuple(members)
    best = np.array(
        [[found.rows[name].order[0] if name in found.rows else -1 for found in aligned] for name in names]
    ).reshape(len(names), len(aligned))
    answers = np.array([-1 if found.question.answer is None else found.question.answer for found in aligned])
    both = (best[:, None] >= 0) & (best[None, :] >= 0)
    same = (best[:, None] == best[None, :]) & both
    num_both = both.sum(axis=2)
    return MemberAgreement(
        names=names,
        num_questions=num_both,
        same_answer=np.where(num_both > 0, same.sum(axis=2) / np.maximum(num_both, 1), np.nan),
        num_answered=(both & (answers >= 0)).sum(axis=2),
        error_correlation=np.array(
            [[_error_correlation(one, other, answers) for other in best] for one in best]
        ),
    )


def _error_correlation(one: np.ndarray, other: np.ndarray, answers: np.ndarray) -> float:
    known = (one >= 0) & (other >= 0) & (answers >= 0)
    errors = np.stack([one[known] != answers[known], other[known] != answers[known]]).astype(np.float64)
    if errors.shape[1] == 0 or (errors.min(axis=1) == errors.max(axis=1)).any():
        return float("nan")
    return float(np.asarray(np.corrcoef(errors))[0, 1])
