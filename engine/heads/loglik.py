"""Head loglik: how likely the option itself is as the text of an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from strata.engine.heads.head import Draft, Pen, shown_order
from strata.engine.heads.probabilities import rank_options
from strata.engine.heads.token_head import TokenHead
from strata.engine.types import Prompt, Question, QuestionScores

EMPTY_OPTION_PENALTY = 100.0
"""Nats by which an empty option's log-likelihood lies below the least likely other option's."""


class LogLikelihood(TokenHead):
    """score(option) = sum over the option's tokens t of log P(t | all before t).

    Beside it `loglik_per_char`: the same divided by the option's number of characters.
    Branches: one an option.
    """

    name = "loglik"
    template = "statement"
    needs: Literal["option"] = "option"
    forbids = None
    numbers_options = False

    def write_drafts(self, pen: Pen, question: Question, context: str, *, rotates: bool) -> list[Draft]:
        """A draft an option, of which the option is scored; there is no order to rotate."""
        order = shown_order(pen, question)
        drafts = []
        for option in range(len(question.options)):
            text = pen.render(question, context, option=option)
            scored = pen.find_option(question, context, option=option, text=text)
            drafts.append(Draft(option=option, order=order, label=None, text=text, scored=scored))
        return drafts

    def score_prompt(self, prompt: Prompt, branch_scores: np.ndarray) -> QuestionScores:
        """The sums, and beside them the means a character."""
        lengths = np.array([max(1, len(option)) for option in prompt.question.options])
        has_targets = np.array([bool(branch.targets) for branch in prompt.branches])
        per_char = _rank_last(branch_scores / lengths, has_targets)
        ranked = rank_options(prompt, _rank_last(branch_scores, has_targets))
        return replace(ranked, member_scores={"loglik_per_char": per_char})


def _rank_last(scores: np.ndarray, has_targets: np.ndarray) -> np.ndarray:
    """The scores, with options of no tokens (their sum, 0, would win) below all others."""
    if has_targets.all() or not has_targets.any():
        return scores
    return np.where(has_targets, scores, scores[has_targets].min() - EMPTY_OPTION_PENALTY)
