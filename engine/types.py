"""The objects that cross a stage of the pipeline. Knows nothing of models, devices or files.

Legend of shape suffixes used across the engine: T packed tokens, N query heads, K kv heads, H head dim,
D model dim, F feed-forward dim, V vocabulary, Q questions, O options, S scored positions.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line naming the culprit and what was expected.

    The command line prints the message and exits with status 2. It may quote files of strangers,
    so it is made one line here; see `as_one_line`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(as_one_line(message))


MAX_LINE_CHARACTERS = 900
_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


def as_one_line(text: str) -> str:
    """A message on one line, fit for a terminal: line breaks as blanks, control characters as escapes, cut.

    What is too long is cut in its middle, since the beginning names the file and the end what was expected.
    """
    text = _LINE_BREAK.sub(" ", text.strip())
    if not text.isprintable():
        text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    if len(text) <= MAX_LINE_CHARACTERS:
        return text
    return f"{text[: MAX_LINE_CHARACTERS // 2]} ... {text[-MAX_LINE_CHARACTERS // 3 :]}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One multiple-choice question.

    `id` is kept as text, exactly as in the file. `answer` is an index into `options`, or None when unknown.
    `row` is the one-based data row (header not counted; a line number for JSONL), for messages. Of a text to
    classify, `options` are the names of the labels that it may get, `prompt` is the text, and `context` the
    second text of a pair; `is_text` tells. `contexts` are further ones by the name of what found them, for
    members that are given another than `context`.
    """

    id: str
    prompt: str
    options: tuple[str, ...]
    answer: int | None = None
    context: str = ""
    row: int = 0
    is_text: bool = False
    contexts: tuple[tuple[str, str], ...] = ()

    def name_of(self, option: int) -> str:
        """What results call an option: its letter; of a text to classify the label's name."""
        return self.options[option] if self.is_text else LETTERS[option]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing read off a branch.

    With a `token_id`, the log-probability of that token given `token_ids[:position]` enters the score, so the
    readout used is the one of token `position - 1`. Without one, the readout of token `position` itself goes
    to a classifier head.
    """

    position: int
    token_id: int | None

    @property
    def readout_position(self) -> int:
        """Index, in the branch's token ids, of the token whose readout is needed."""
        return self.position if self.token_id is None else self.position - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """One scored root-to-leaf path of a question's prefix tree.

    `token_ids` [L] int32 holds every token that has to be computed, from the root; a last target token is
    predicted, never computed, so its position may equal L. `option` indexes the question's own options.
    `order` lists the option indexes in the order the prompt shows them (empty when it shows this option
    only). `label` is the text whose tokens are the targets, None for a classifier head or when the option
    itself is scored. `siblings` are spans of `token_ids` that do not see each other, one right behind the
    other, which begin at the same position; the tokens behind them go on behind the longest.
    """

    option: int
    order: tuple[int, ...]
    label: str | None
    token_ids: np.ndarray
    text: str
    targets: tuple[Target, ...]
    siblings: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A question rendered and tokenized: its scored branches, and how many context tokens were cut off."""

    question: Question
    branches: tuple[Branch, ...]
    num_truncated_tokens: int = 0


SUMS = "loglik"
"""Name of the member scores [O] that are log-likelihoods, where the scores are these over lengths."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionScores:
    """What a run says of one question: scores, probabilities [O] float, and option indexes, best first."""

    question: Question
    scores: np.ndarray
    probabilities: np.ndarray
    member_scores: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, ...]:
        """Option indexes, best first; ties keep the question's own order."""
        return tuple(int(index) for index in np.argsort(-self.scores, kind="stable"))

    @property
    def margin(self) -> float:
        """Probability of the best option minus that of the second; 1 where there is one option alone."""
        if len(self.probabilities) == 1:
            return 1.0
        second, best = np.sort(self.probabilities)[-2:]
        return float(best - second)


@dataclass(kw_only=True)
class RunWarnings:
    """Odd rows and settings that were not honoured: collected, printed once a kind, kept in run.json."""

    strict: bool = False
    rows: dict[str, list[str]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def odd_row(self, kind: str, question_id: str, where: str) -> None:
        """Records that a question is odd in the way `kind` tells; a strict run raises InputError."""
        if self.strict:
            raise InputError(f"{where}: {kind} (question id {question_id!r}); --strict refuses it")
        self.rows.setdefault(kind, []).append(question_id)

    def say(self, message: str) -> None:
        """Records a message once."""
        if message not in self.messages:
            self.messages.append(message)

    def lines(self) -> list[str]:
        """One line a kind, with a count and the first ids."""
        counts = Counter({kind: len(ids) for kind, ids in self.rows.items()})
        rows = [
            f"{kind}: {count} question(s), first {', '.join(self.rows[kind][:3])}"
            for kind, count in counts.items()
        ]
        return rows + self.messages


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
