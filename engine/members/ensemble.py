"""Several members' scores of a question as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from strata.engine.heads.probabilities import average_probabilities, option_probabilities
from strata.engine.types import QuestionScores


def average_members(members: dict[str, list[QuestionScores]]) -> list[QuestionScores]:
    """One result a question from several members: their mean probabilities.

    Each member's scores are kept under its name, what its head gives beside them under `<name>_<what>`.
    """
    if len(members) == 1:
        return next(iter(members.values()))
    averaged = []
    for rows in zip(*members.values(), strict=True):
        scores = average_probabilities(row.scores for row in rows)
        by_member = {name: row.scores for name, row in zip(members, rows, strict=True)}
        for name, row in zip(members, rows, strict=True):
            by_member |= {f"{name}_{beside}": values for beside, values in row.member_scores.items()}
        averaged.append(
            QuestionScores(
                question=rows[0].question,
                scores=scores,
                probabilities=option_probabilities(scores),
                member_scores=by_member,
            )
        )
    return averaged


def finish_each(
    names: Sequence[str],
    rows: Sequence[QuestionScores],
    finish: Callable[[Sequence[QuestionScores]], list[QuestionScores]],
) -> list[QuestionScores]:
    """Averaged rows, of which every member's part is finished by itself."""
    if len(names) == 1:
        return finish(rows)
    return average_members({name: finish([scores_of_member(row, name) for row in rows]) for name in names})


def scores_of_member(row: QuestionScores, name: str) -> QuestionScores:
    """What one of the members that were averaged into a result said itself."""
    beside = {
        key.removeprefix(f"{name}_"): values
        for key, values in row.member_scores.items()
        if key.startswith(f"{name}_")
    }
    return replace(row, scores=row.member_scores[name], member_scores=beside)
