"""Ways none, rotate and permute: how many orders a question is shown in. Knows no scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np

from strata.engine.heads.debias import rotations
from strata.engine.heads.debiasing.debias import (
    AskedHead,
    DebiasSettings,
    Order,
    stated_order,
    stated_orders,
)
from strata.engine.types import Question, QuestionScores, RunWarnings

DEFAULT_ORDERS = 24
"""Orders a question: all of up to four options, so many of more."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Options in the stated order only: nothing is taken out."""

    name = "none"
    masks_options = False
    waits_for_all = False

    def suits(self, head: AskedHead) -> bool:
        """Any head."""
        return True

    def plan_orders(self, questions: Sequence[Question]) -> list[tuple[Order, ...]]:
        """The stated one."""
        return stated_orders(questions)

    def finish(self, rows: Sequence[QuestionScores], warnings: RunWarnings) -> list[QuestionScores]:
        """As they are: a head averages a question's orders by itself."""
        return list(rows)


@dataclass(frozen=True, kw_only=True)
class Rotate(Stated):
    """Every cyclic order, so that every option has every place once."""

    name = "rotate"

    def suits(self, head: AskedHead) -> bool:
        """Heads that number the options."""
        return head.numbers_options

    def plan_orders(self, questions: Sequence[Question]) -> list[tuple[Order, ...]]:
        """As many as a question has options."""
        return [rotations(len(question.options)) for question in questions]


@dataclass(frozen=True, kw_only=True)
class Permute(Stated):
    """All orders, or as many as are wanted, drawn without repeats for each question by its id."""

    settings: DebiasSettings

    name = "permute"

    def suits(self, head: AskedHead) -> bool:
        """Heads that number the options."""
        return head.numbers_options

    def plan_orders(self, questions: Sequence[Question]) -> list[tuple[Order, ...]]:
        """The stated order, then others; a question's do not depend on which others are asked."""
        return [self._orders(question) for question in questions]

    def _orders(self, question: Question) -> tuple[Order, ...]:
        num_options = len(question.options)
        wanted = self.settings.num_orders or DEFAULT_ORDERS
        if factorial(num_options) <= wanted:
            return tuple(permutations(range(num_options)))
        generator = np.random.default_rng([self.settings.seed, *question.id.encode()])
        orders = {stated_order(question): None}
        while len(orders) < wanted:
            orders[tuple(generator.permutation(num_options).tolist())] = None
        return tuple(orders)
