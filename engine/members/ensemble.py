"""Several members' scores of a question as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from strata.engine.ensembles.named_scores import name_scores, scores_of_member
from strata.engine.heads.probabilities import average_probabilities, option_probabilities
from strata.engine.types import QuestionScores


def average_members(members: Mapping[str, list[QuestionScores]]) -> list[QuestionScores]:
    """One result a question from several members: their mean probabilities; a lone member's as it is."""
    if len(members) == 1:
        return next(iter(members.values()))
    rows = zip(*members.values(), strict=True)
    return [average_heard(dict(zip(members, of_question, strict=True))) for of_question in rows]


def average_heard(rows: Mapping[str, QuestionScores]) -> QuestionScores:
    """One question's mean over those of several members that have scored it, each kept by its name."""
    scores = average_probabilities(row.scores for row in rows.values())
    return QuestionScores(
        question=next(iter(rows.values())).question,
        scores=scores,
        probabilities=option_probabilities(scores),
        member_scores=name_scores(rows),
    )


def finish_each(
    names: Sequence[str],
    rows: Sequence[QuestionScores],
    finish: Callable[[Sequence[QuestionScores]], list[QuestionScores]],
) -> list[QuestionScores]:
    """Averaged rows, of which every member's part is finished by itself."""
    if len(names) == 1:
        return finish(rows)
    return average_members({name: finish([scores_of_member(row, name) for row in rows]) for name in names})
