"""Head loglik: how likely the option itself is as the text of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from strata.engine.heads.debiasing.debias import Order
from strata.engine.heads.head import Draft, Head, Pen, shown_order
from strata.engine.heads.probabilities import rank_options
from strata.engine.heads.token_head import TokenHead
from strata.engine.types import SUMS, InputError, Prompt, Question, QuestionScores

EMPTY_OPTION_PENALTY = 100.0
"""Nats by which an empty option's log-likelihood lies below the least likely other option's."""

Normalization = Literal["none", "char", "byte", "token"]
DEFAULT_NORMALIZATION: Normalization = "char"
"""The best of the four on real models: sums prefer short options."""


@dataclass(frozen=True, kw_only=True)
class LogLikelihood(TokenHead):
    """score(option) = sum over the option's tokens t of log P(t | all before t), divided by its length.

    The length is that of the option as the file has it, in characters (Unicode code points) or bytes (UTF-8),
    the number of its tokens in the prompt, or 1 for `none`. Beside the scores, under SUMS: the sums.
    Branches: one an option.

    Source: `acc`, `acc_norm` (characters) and `acc_bytes` of lm-evaluation-harness 0.4.13,
    lm_eval.api.task.ConfigurableTask.process_results.

    Attributes:
        normalize: what the sum is divided by.
    """

    normalize: Normalization = DEFAULT_NORMALIZATION

    name = "loglik"
    template = "statement"
    needs: Literal["option"] = "option"
    forbids = None
    numbers_options = False

    def write_drafts(
        self, pen: Pen, question: Question, context: str, *, orders: Sequence[Order]
    ) -> list[Draft]:
        """A draft an option, of which the option is scored; its list, if any, is in the stated order."""
        order = shown_order(pen, question)
        drafts = []
        for option in range(len(question.options)):
            text = pen.render(question, context, option=option)
            span = pen.find_option(question, context, option=option, text=text)
            drafts.append(Draft.of_option(text, span, option=option, order=order))
        return drafts

    def score_prompt(self, prompt: Prompt, branch_scores: np.ndarray) -> QuestionScores:
        """The sums divided by the lengths, and beside them the sums."""
        has_targets = np.array([bool(branch.targets) for branch in prompt.branches])
        scores = _rank_last(branch_scores / self._lengths(prompt), has_targets)
        sums = _rank_last(branch_scores, has_targets)
        return replace(rank_options(prompt, scores), member_scores={SUMS: sums})

    def _lengths(self, prompt: Prompt) -> np.ndarray:
        """[O], 1 for an option without any."""
        options = prompt.question.options
        lengths = {
            "none": [1] * len(options),
            "char": [len(option) for option in options],
            "byte": [len(option.encode()) for option in options],
            "token": [len(branch.targets) for branch in prompt.branches],
        }
        return np.maximum(lengths[self.normalize], 1)


def with_normalization(head: Head, normalize: Normalization) -> Head:
    """The head that divides log-likelihoods as told, where it has any.

    Raises:
        InputError: an unknown way.
    """
    if normalize not in get_args(Normalization):
        raise InputError(f"--normalize {normalize!r}: expected none, char, byte or token")
    return LogLikelihood(normalize=normalize) if isinstance(head, LogLikelihood) else head


def describe_head(head: Head) -> dict[str, object]:
    """Name and settings of any head, as run.json keeps them."""
    settings = {"normalize": head.normalize} if isinstance(head, LogLikelihood) else {}
    return {"head": head.name, **settings}


def _rank_last(scores: np.ndarray, has_targets: np.ndarray) -> np.ndarray:
    """The scores, with options of no tokens (their sum, 0, would win) below all others."""
    if has_targets.all() or not has_targets.any():
        return scores
    return np.where(has_targets, scores, scores[has_targets].min() - EMPTY_OPTION_PENALTY)
