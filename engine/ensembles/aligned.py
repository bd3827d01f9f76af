"""Members' results side by side, by the questions' ids. Knows no formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strata.engine.types import InputError, Question, QuestionScores


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignedQuestion:
    """A question, and what each member that has it says; members in their order."""

    question: Question
    rows: dict[str, QuestionScores]


def align_members(members: Mapping[str, Sequence[QuestionScores]]) -> list[AlignedQuestion]:
    """All questions that a member has, in the order in which they come up, member after member.

    Args:
        members: by name, each with its questions' results in any order; a member may lack questions.

    Raises:
        InputError: there is no member, or two give a question different numbers of options.
    """
    if not members:
        raise InputError("no member; expected at least one")
    found: dict[str, AlignedQuestion] = {}
    for name, rows in members.items():
        for row in rows:
            aligned = found.setdefault(row.question.id, AlignedQuestion(question=row.question, rows={}))
            if len(row.scores) != len(aligned.question.options):
                raise InputError(
                    f"question {row.question.id!r}: member {name!r} scores {len(row.scores)} options; "
                    f"expected {len(aligned.question.options)}"
                )
            aligned.rows[name] = row
    return list(found.values())
