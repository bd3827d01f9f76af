"""Head classify: one text, and a trained matrix with a row for each of L labels on its pooled hidden state.

Data flow: a Question whose options are names of labels -> one branch, the text (or the pair of texts) as the
tokenizer makes it, read at its last token that is not padding -> r [D] -> W r + b [L] -> scores [O] of the
question's own labels, found by name: all L in order, or a subset of them (a mask), over which the
probabilities are a softmax. Which token is read, and pairs: prompts/texts.py.
Legend: L labels of the classifier, O labels that a question may get, n questions, D model dim.
Source: transformers.modeling_layers.GenericForSequenceClassification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from strata.engine.heads.debiasing.debias import Order
from strata.engine.heads.head import ANY_NUMBER, Draft, Pen, ReadingCosts, Readings
from strata.engine.heads.probabilities import rank_options
from strata.engine.tree.targets import TargetTable
from strata.engine.types import Prompt, Question, QuestionScores


class Classify:
    """score(label) = W[label] . r + b[label], r the final-norm hidden state that the text is pooled to."""

    name = "classify"
    template = "text"
    needs: Literal["prompt"] = "prompt"
    forbids: Literal["option"] = "option"
    numbers_options = False

    def weight_shapes(self, hidden_size: int) -> tuple[tuple[int, int], ...]:
        """Two labels or more."""
        return ((ANY_NUMBER, hidden_size),)

    def normalizes(self, targets: TargetTable) -> bool:
        """No log-probability is asked for."""
        return False

    def write_drafts(
        self, pen: Pen, question: Question, context: str, *, orders: Sequence[Order]
    ) -> list[Draft]:
        """One draft; a context that the template does not show is the second text of a pair."""
        text = pen.render(question, context)
        second = None if pen.uses_context else context
        return [Draft(option=0, order=(), label=None, text=text, scored=None, second=second)]

    def bytes_read(self, targets: TargetTable, costs: ReadingCosts, *, normalized: bool) -> int:
        """The trained matrix and its bias, whatever the targets are."""
        return costs.score_weight_bytes()

    def score(
        self, prompts: Sequence[Prompt], targets: TargetTable, readings: Readings
    ) -> list[QuestionScores]:
        """Logits of each question's labels, in float64."""
        logits_nL = readings.hidden_states().double() @ readings.score_weight().double().T
        if (bias := readings.score_bias()) is not None:
            logits_nL += bias.double()
        rows = {name: row for row, name in enumerate(readings.labels())}
        return [
            rank_options(prompt, logits_L[find_rows(prompt.question, rows)])
            for prompt, logits_L in zip(prompts, logits_nL.numpy(), strict=True)
        ]


def find_rows(question: Question, rows: dict[str, int]) -> np.ndarray:
    """[O] the classifier's rows of the question's labels, which it has: `prompts.texts` has looked."""
    return np.array([rows[name] for name in question.options])
