"""Few-shot examples: which questions are shown with their answers before a question. Knows no layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from strata.engine.heads.head import Draft
from strata.engine.types import Question


class Examples:
    """A pool of answered questions, of which the first few are shown before every question.

    A question that is in the pool itself is not its own example: the next of the pool takes that place.
    """

    def __init__(
        self, pool: Sequence[Question], num_shots: int | None, write: Callable[[Question], list[Draft]]
    ) -> None:
        """Writes the pool's drafts.

        Args:
            pool: questions with answers, in the order shown.
            num_shots: how many are shown; None for all.
            write: a question's drafts.
        """
        self._pool = [
            (_identity(question), _pick_draft(question, write(question), number))
            for number, question in enumerate(pool)
        ]
        self._num_shots = len(pool) if num_shots is None else num_shots

    def before(self, question: Question) -> list[Draft]:
        """Drafts whose scored text is a right answer, in the order shown."""
        asked = _identity(question)
        return [draft for shown, draft in self._pool if shown != asked][: self._num_shots]


def _identity(question: Question) -> tuple[str, ...]:
    """What is asked, whatever the id and the order of the options."""
    return (question.prompt.strip(), *sorted(question.options))


def _pick_draft(question: Question, drafts: Sequence[Draft], number: int) -> Draft:
    """The draft that says what is right.

    Of a head with a yes and a no an option, every second example shows the option after the answer and says
    no, so that examples do not always say yes.
    """
    assert question.answer is not None
    right = [draft for draft in drafts if draft.option == question.answer]
    if len(right) == 1 or number % 2 == 0:
        return right[0]
    wrong = (question.answer + 1) % len(question.options)
    return [draft for draft in drafts if draft.option == wrong][1]
