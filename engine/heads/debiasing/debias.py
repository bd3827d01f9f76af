"""What a way to debias is: the orders that a question's options are shown in, and what is made of all scores.

Data flow: questions -> `plan_orders` -> the head writes a draft for each order -> one score an option and
order, un-permuted and averaged by the head (heads/debias.py) -> `finish`, once all questions are scored. A
way is a class in a file beside this one and a line of `registry.DEBIASES`. Knows no template and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from strata.engine.types import InputError, Question, QuestionScores, RunWarnings

Order = tuple[int, ...]
"""Option indexes in the order shown."""


@dataclass(frozen=True, kw_only=True)
class DebiasSettings:
    """What a way to debias may be told.

    Attributes:
        num_orders: orders a question, the stated one included; None for the way's own number.
        sample: share of the questions that are shown in every cyclic order, to learn what a place is worth.
        seed: of orders and samples that are drawn.

    Raises:
        InputError: no order, a share that is none, or a negative seed.
    """

    num_orders: int | None = None
    sample: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_orders is not None and self.num_orders < 1:
            raise InputError(f"--debias-orders {self.num_orders}: expected 1 or more")
        if not 0 < self.sample <= 1:
            raise InputError(f"--debias-sample {self.sample}: expected a share above 0, at most 1")
        if self.seed < 0:
            raise InputError(f"--debias-seed {self.seed}: expected 0 or more")


class AskedHead(Protocol):
    """What a way to debias knows of a head; see `Head`."""

    @property
    def name(self) -> str:
        """What `--head` calls it."""
        ...

    @property
    def needs(self) -> Literal["option", "options", "prompt"]:
        """The template variable that every template for it must use."""
        ...

    @property
    def numbers_options(self) -> bool:
        """Whether options are named by their place."""
        ...


class Debias(Protocol):
    """A way to take the preference for a position out of the scores. Implementations hold settings only."""

    @property
    def name(self) -> str:
        """What `--debias` calls it."""
        ...

    @property
    def masks_options(self) -> bool:
        """Whether the options that a prompt lists are hidden from each other, all at the same positions."""
        ...

    @property
    def waits_for_all(self) -> bool:
        """Whether a question's scores depend on others', so that `finish` has something to do."""
        ...

    def suits(self, head: AskedHead) -> bool:
        """Whether it changes the head's scores; where it does not, a run says so and goes on.

        Raises:
            InputError: the head cannot be asked in this way.
        """
        ...

    def plan_orders(self, questions: Sequence[Question]) -> list[tuple[Order, ...]]:
        """For each question the orders that its options are listed in, the stated one first."""
        ...

    def finish(self, rows: Sequence[QuestionScores], warnings: RunWarnings) -> list[QuestionScores]:
        """The scores of questions, in order, given all that are known.

        Of rows that were finished before it makes the same. `rows` are one member's.
        """
        ...


def stated_order(question: Question) -> Order:
    """The order in which the question has its options."""
    return tuple(range(len(question.options)))


def stated_orders(questions: Sequence[Question]) -> list[tuple[Order, ...]]:
    """`Debias.plan_orders` of a way that shows the stated order only."""
    return [(stated_order(question),) for question in questions]
