"""Several members' scores of a question as one."""

from __future__ import annotations

from strata.engine.heads.probabilities import average_probabilities, option_probabilities
from strata.engine.types import QuestionScores


def average_members(members: dict[str, list[QuestionScores]]) -> list[QuestionScores]:
    """One result a question from several members: their mean probabilities; each member's scores are kept."""
    if len(members) == 1:
        return next(iter(members.values()))
    averaged = []
    for rows in zip(*members.values(), strict=True):
        scores = average_probabilities(row.scores for row in rows)
        by_member = {name: row.scores for name, row in zip(members, rows, strict=True)}
        averaged.append(
            QuestionScores(
                question=rows[0].question,
                scores=scores,
                probabilities=option_probabilities(scores),
                member_scores=by_member,
            )
        )
    return averaged
