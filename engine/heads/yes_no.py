"""Head yes-no: how much likelier "yes" is than "no" after a prompt that proposes the option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from strata.engine.heads.debiasing.debias import Order
from strata.engine.heads.head import Draft, Pen, shown_order
from strata.engine.heads.probabilities import rank_options
from strata.engine.heads.token_head import TokenHead
from strata.engine.tree.targets import TargetTable
from strata.engine.types import Prompt, Question, QuestionScores


class YesNo(TokenHead):
    """score(option) = log P(tokens of yes | prompt of the option) - log P(tokens of no | the same prompt).

    Branches: two an option, yes and then no.
    """

    name = "yes-no"
    template = "yes-no"
    needs: Literal["option"] = "option"
    forbids = None
    numbers_options = False

    def normalizes(self, targets: TargetTable) -> bool:
        """False when yes and no are one token each at one readout: their normalizers cancel."""
        counts = np.bincount(targets.branches, minlength=targets.num_branches)
        if (counts != 1).any():
            return True
        pairs = targets.rows.reshape(-1, 2)
        return bool((pairs[:, 0] != pairs[:, 1]).any())

    def write_drafts(
        self, pen: Pen, question: Question, context: str, *, orders: Sequence[Order]
    ) -> list[Draft]:
        """Two drafts an option; its list, if any, is in the stated order."""
        order = shown_order(pen, question)
        drafts: list[Draft] = []
        for option in range(len(question.options)):
            text = pen.render(question, context, option=option)
            drafts += [Draft.of_label(label, after=text, option=option, order=order) for label in pen.labels]
        return drafts

    def score_prompt(self, prompt: Prompt, branch_scores: np.ndarray) -> QuestionScores:
        """Yes minus no, an option."""
        return rank_options(prompt, branch_scores[0::2] - branch_scores[1::2])
