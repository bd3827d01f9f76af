"""Heads binary and contrast: a trained matrix on the hidden state of an option's last token.

Legend: O options of one question, D model dim, r_i the final-norm hidden state of option i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from strata.engine.heads.debiasing.debias import Order
from strata.engine.heads.head import Draft, Pen, ReadingCosts, Readings, shown_order
from strata.engine.heads.probabilities import rank_options
from strata.engine.tree.targets import TargetTable
from strata.engine.types import Prompt, Question, QuestionScores

if TYPE_CHECKING:
    import torch


class ClassifierHead(ABC):
    """The part of a classifier head that does not depend on its formula. Branches: one an option."""

    template = "statement"
    needs: Literal["option"] = "option"
    forbids = None
    numbers_options = False

    def normalizes(self, targets: TargetTable) -> bool:
        """No log-probability is asked for."""
        return False

    def write_drafts(
        self, pen: Pen, question: Question, context: str, *, orders: Sequence[Order]
    ) -> list[Draft]:
        """A draft an option, read at its last token; its list, if any, is in the stated order."""
        order = shown_order(pen, question)
        texts = [pen.render(question, context, option=option) for option in range(len(question.options))]
        return [
            Draft(option=option, order=order, label=None, text=text, scored=None)
            for option, text in enumerate(texts)
        ]

    def bytes_read(self, targets: TargetTable, costs: ReadingCosts, *, normalized: bool) -> int:
        """The trained matrix, whatever the targets are."""
        return costs.score_weight_bytes()

    def score(
        self, prompts: Sequence[Prompt], targets: TargetTable, readings: Readings
    ) -> list[QuestionScores]:
        """Scores of questions from the hidden states of their options, in float64."""
        weight, bias = readings.score_weight().double(), readings.score_bias()
        per_prompt = readings.hidden_states().double().split([len(prompt.branches) for prompt in prompts])
        return [
            rank_options(prompt, (self.score_options(r_OD, weight) + total_bias(bias)).numpy())
            for prompt, r_OD in zip(prompts, per_prompt, strict=True)
        ]

    @abstractmethod
    def score_options(self, r_OD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[O] scores of one question, from hidden states [O, D] and the trained matrix, without its bias."""


class Binary(ClassifierHead):
    """score(i) = w . r_i + b; with two labels, the logit of the second minus that of the first."""

    name = "binary"

    def weight_shapes(self, hidden_size: int) -> tuple[tuple[int, int], ...]:
        """One label, or two: wrong and right."""
        return ((1, hidden_size), (2, hidden_size))

    def score_options(self, r_OD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The logits, each on its own."""
        return binary_scores(r_OD, weight)


class Contrast(ClassifierHead):
    """score(i) = w[:D] . r_i + w[D:] . mean over j != i of r_j.

    Source: the first-place solution of the competition "Kaggle - LLM Science Exam" (2023).
    """

    name = "contrast"

    def weight_shapes(self, hidden_size: int) -> tuple[tuple[int, int], ...]:
        """One label, on the option and on the mean of the others."""
        return ((1, 2 * hidden_size),)

    def score_options(self, r_OD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The logits, each seeing the other options."""
        return contrast_scores(r_OD, weight[0])


def binary_scores(r_OD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[O] logit of the one label, or of label 1 minus label 0: hidden states [O, D], weight [1 or 2, D]."""
    logits = r_OD @ weight.T
    return logits[:, 0] if weight.shape[0] == 1 else logits[:, 1] - logits[:, 0]


def total_bias(bias: torch.Tensor | None) -> float:
    """What a bias of one label, or of two (wrong, right), adds to every option's score."""
    if bias is None:
        return 0.0
    return float(bias[-1]) - (float(bias[0]) if len(bias) == 2 else 0.0)


def contrast_scores(r_OD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[O] logits that also see the mean of the other options: hidden states [O, D], weight [2 D]."""
    width = r_OD.shape[1]
    others = (r_OD.sum(dim=0) - r_OD) / max(1, len(r_OD) - 1)
    return r_OD @ weight[:width] + others @ weight[width:]
