"""What a head is: the texts it writes of a question, what it reads of their tokens, and the scores it makes.

Data flow: question -> `write_drafts` (through a `Pen`) -> the engine tokenizes, sweeps, and keeps a readout
for every target -> `score` (asking `Readings`) -> [O] scores a question. `ReadingCosts` tells a planner,
ahead of the sweep, what asking will read. A head is a file beside this one and a line of `registry.HEADS`.
Knows no template, tokenizer, checkpoint or device, and loads no torch: --help may import it.

Legend: n targets, D model dim, O options of one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from strata.engine.heads.debiasing.debias import Order
from strata.engine.tree.targets import TargetTable
from strata.engine.types import Prompt, Question, QuestionScores

if TYPE_CHECKING:
    import torch


ANY_NUMBER = -1


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The text of one branch before it is tokenized; `option`, `order`, `label`, `text` as in `Branch`.

    `scored` is the span of the characters [start, end) whose tokens are the targets: those of the label, or
    of the option for a head that scores the option itself (empty for an empty option). None when a head
    reads the hidden state of the last token. `second` is the second text of a pair that is tokenized as one.

    `is_continuation` says which tokens these are: those of the text up to `end` after as many as the text
    before `start` becomes on its own (see prompts/continuations.py), or, where it is False, all that hold any
    of the characters.
    """

    option: int
    order: tuple[int, ...]
    label: str | None
    text: str
    scored: tuple[int, int] | None
    second: str | None = None
    is_continuation: bool = False
    siblings: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_option(cls, text: str, span: tuple[int, int], *, option: int, order: tuple[int, ...]) -> Draft:
        """A draft whose option, at `span` of the text, continues it, with the white space before it."""
        start, end = span
        if start < end:
            start = len(text[:start].rstrip())
        return cls(
            option=option, order=order, label=None, text=text, scored=(start, end), is_continuation=True
        )

    @classmethod
    def of_label(cls, label: str, *, after: str, option: int, order: tuple[int, ...]) -> Draft:
        """A draft whose prompt `after` is followed by a label, all of which is scored."""
        text = after + label
        return cls(option=option, order=order, label=label, text=text, scored=(len(after), len(text)))


class Pen(Protocol):
    """Writes questions through a template, for a head that says what to write."""

    @property
    def labels(self) -> tuple[str, str]:
        """The template's texts for yes and no."""
        ...

    @property
    def lists_options(self) -> bool:
        """Whether the template shows all options."""
        ...

    @property
    def uses_context(self) -> bool:
        """Whether the template shows the context."""
        ...

    def render(
        self,
        question: Question,
        context: str,
        *,
        order: Sequence[int] | None = None,
        option: int | None = None,
    ) -> str:
        """The template's text of a question.

        Args:
            question: what is asked.
            context: shown in place of the question's context.
            order: option indexes in the order in which the template's `options` lists them; None for the
                order in which the question states them.
            option: index of the option in the template's `option`; None where the head has no use for it.

        Raises:
            InputError: the template cannot be rendered with this question.
        """
        ...

    def find_option(self, question: Question, context: str, *, option: int, text: str) -> tuple[int, int]:
        """The characters [start, end) at which `text`, rendered with this option, shows the option.

        Raises:
            InputError: the template does not show the option as it is.
        """
        ...


class Readings(Protocol):
    """What one member of an ensemble says of some targets; whoever computed the readouts implements it."""

    def log_probabilities(self) -> np.ndarray:
        """[n] float64, of every target's token; logits where `Head.normalizes` says that these will do.

        Raises:
            FloatingPointError: one is not finite.
        """
        ...

    def are_most_probable(self) -> np.ndarray:
        """[n] bool, whether no token is more probable there than the target; for heads that normalize."""
        ...

    def hidden_states(self) -> torch.Tensor:
        """[n, D] on the host, the final-norm hidden state that every target is read from."""
        ...

    def score_weight(self) -> torch.Tensor:
        """The trained `score.weight`, in one of the shapes that the head's `weight_shapes` names."""
        ...

    def score_bias(self) -> torch.Tensor | None:
        """[labels] the trained `score.bias`; None for a classifier without one."""
        ...

    def labels(self) -> Sequence[str]:
        """Names of the score weight's rows, in order."""
        ...


class ReadingCosts(Protocol):
    """What asking `Readings` of one member reads from its checkpoint, once for a set of targets."""

    def vocabulary_bytes(self, token_ids: np.ndarray, *, normalized: bool) -> int:
        """Bytes read for the log-probabilities (or, not `normalized`, the logits) of these tokens."""
        ...

    def score_weight_bytes(self) -> int:
        """Bytes read for the score weight and its bias; 0 where an adapter brings them."""
        ...


class Head(Protocol):
    """How the options of a question are scored. Implementations hold no state."""

    @property
    def name(self) -> str:
        """What `--head` calls it."""
        ...

    @property
    def template(self) -> str:
        """Name of the built-in template that is used unless the user names one."""
        ...

    @property
    def needs(self) -> Literal["option", "options", "prompt"]:
        """The template variable that every template for this head must use."""
        ...

    @property
    def forbids(self) -> Literal["option"] | None:
        """The template variable that none may use: "option" for a head that shows all options at once."""
        ...

    @property
    def numbers_options(self) -> bool:
        """Whether options are named by their place, so that other orders change the scores."""
        ...

    def weight_shapes(self, hidden_size: int) -> tuple[tuple[int, int], ...]:
        """Shapes [labels, width] of a `score.weight` that this head takes; none when it reads none.

        ANY_NUMBER of labels stands for two or more.
        """
        ...

    def normalizes(self, targets: TargetTable) -> bool:
        """Whether log-probabilities are needed, and not logits alone, asked once of all targets of a job.

        Logits cost a read of the vocabulary projection's rows for the targets' tokens, log-probabilities one
        of all its rows.
        """
        ...

    def write_drafts(
        self, pen: Pen, question: Question, context: str, *, orders: Sequence[Order]
    ) -> list[Draft]:
        """The texts of a question's branches.

        Args:
            pen: renders the template.
            question: what is asked; its context is not looked at.
            context: what is left of the context.
            orders: those that a head which numbers the options shows them in, the stated one first.

        Raises:
            InputError: the template cannot be rendered with this question.
        """
        ...

    def bytes_read(self, targets: TargetTable, costs: ReadingCosts, *, normalized: bool) -> int:
        """Bytes that `score` will read for one member and these targets, exactly."""
        ...

    def score(
        self, prompts: Sequence[Prompt], targets: TargetTable, readings: Readings
    ) -> list[QuestionScores]:
        """Scores of some questions.

        Args:
            prompts: the questions, with all their branches.
            targets: the targets of all these branches, which are numbered from 0.
            readings: what can be asked of those targets.

        Returns:
            One a prompt, in order.

        Raises:
            FloatingPointError: a score is not finite.
        """
        ...


def shown_order(pen: Pen, question: Question) -> tuple[int, ...]:
    """`Branch.order` of a draft about one option: the stated order where the template lists the options."""
    return tuple(range(len(question.options))) if pen.lists_options else ()
