"""Whether answers prefer a position, before and after debiasing, as run.json keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from strata.engine.calibration.position_bias import measure_position_bias
from strata.engine.heads.debias import STATED_ORDER
from strata.engine.heads.probabilities import option_probabilities
from strata.engine.types import QuestionScores


def describe_position_bias(rows: Sequence[QuestionScores]) -> dict[str, Any] | None:
    """Recalls and shares by position, and the standard deviation of the recalls.

    Args:
        rows: what a run, or one member of it, says.

    Returns:
        `after`, as `rows` are, and where options were shown in several orders also `before`: of the same
        questions as the stated order alone answers them. None where no answer is known.
    """
    answered = [row for row in rows if row.question.answer is not None]
    if not answered:
        return None
    bias = {"after": asdict(measure_position_bias(answered))}
    stated = [_as_stated(row) for row in answered if STATED_ORDER in row.member_scores]
    if stated:
        bias = {"before": asdict(measure_position_bias(stated))} | bias
    return bias


def _as_stated(row: QuestionScores) -> QuestionScores:
    scores = row.member_scores[STATED_ORDER]
    return replace(row, scores=scores, probabilities=option_probabilities(scores))
