"""Several members' results of one question in one result, by name, and taken apart again.

A member's scores are under its name, what its head gives beside them under `<name>_<what>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from strata.engine.heads.probabilities import option_probabilities
from strata.engine.types import QuestionScores


def name_scores(rows: Mapping[str, QuestionScores]) -> dict[str, np.ndarray]:
    """What members say of one question: [O] each, `QuestionScores.member_scores` of a common result."""
    named = {name: row.scores for name, row in rows.items()}
    for name, row in rows.items():
        named |= {f"{name}_{beside}": values for beside, values in row.member_scores.items()}
    return named


def scores_of_member(row: QuestionScores, name: str) -> QuestionScores:
    """What one of the members that `name_scores` has put into a result said itself."""
    beside = {
        key.removeprefix(f"{name}_"): values
        for key, values in row.member_scores.items()
        if key.startswith(f"{name}_")
    }
    scores = row.member_scores[name]
    return replace(row, scores=scores, probabilities=option_probabilities(scores), member_scores=beside)
