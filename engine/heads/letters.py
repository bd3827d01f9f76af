"""Head letters: which option's letter follows a prompt that lists all options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from strata.engine.heads.debias import (
    BY_PLACE,
    STATED_ORDER,
    group_by_order,
    mean_by_place,
    unrotate_and_average,
)
from strata.engine.heads.debiasing.debias import Order
from strata.engine.heads.head import Draft, Pen
from strata.engine.heads.probabilities import rank_options
from strata.engine.heads.token_head import TokenHead
from strata.engine.types import LETTERS, Prompt, Question, QuestionScores


class Letters(TokenHead):
    """score(option) = log P(tokens of its letter | prompt that lists the options).

    Where the options are shown in several orders: the logarithm of the option's mean probability over them,
    each order's probabilities being the softmax of its letters' log-probabilities.
    Branches: one a letter for each order, in the order shown.
    """

    name = "letters"
    template = "letters"
    needs: Literal["options"] = "options"
    forbids: Literal["option"] = "option"
    numbers_options = True

    def write_drafts(
        self, pen: Pen, question: Question, context: str, *, orders: Sequence[Order]
    ) -> list[Draft]:
        """A draft a letter, for each of the orders."""
        drafts: list[Draft] = []
        for order in orders:
            text = pen.render(question, context, order=order)
            for letter, option in zip(LETTERS, order, strict=False):
                drafts.append(Draft.of_label(letter, after=text, option=option, order=order))
        return drafts

    def score_prompt(self, prompt: Prompt, branch_scores: np.ndarray) -> QuestionScores:
        """The letters' log-probabilities, un-permuted and averaged over the orders shown.

        Beside them, where there are several: those of the stated order, and of each place.
        """
        by_order = group_by_order(prompt.branches, branch_scores.tolist())
        stated = next(iter(by_order.values()))
        if len(by_order) == 1:
            return rank_options(prompt, stated)
        scores, probabilities = unrotate_and_average(by_order)
        return QuestionScores(
            question=prompt.question,
            scores=scores,
            probabilities=probabilities,
            member_scores={STATED_ORDER: stated, BY_PLACE: mean_by_place(by_order)},
        )
