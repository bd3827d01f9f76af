"""What a run learns from and is evaluated on: questions with labels, checked. Knows no model.

A renderer, the model's, writes the prompts of a batch at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from strata.engine.questions.question_file import read_questions
from strata.engine.types import LETTERS, InputError, Question, RunWarnings
from strata.training.config import TrainConfig
from strata.training.data.batch_order import hold_out, shuffle_options
from strata.training.data.soft_labels import mix_labels, read_soft_labels
from strata.training.types import Example, Renderer

SHOWN_IDS = 3


class ExampleSource(Protocol):
    """Examples by index."""

    def __len__(self) -> int: ...

    def read(self, renderer: Renderer, indices: Sequence[int], *, epoch: int | None) -> list[Example]:
        """Examples as that epoch shows them; None: as the file has them."""
        ...

    def fingerprint(self) -> str:
        """A digest of everything that is learned from."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSet:
    """What is trained on, and what is evaluated on (None: nothing)."""

    train: ExampleSource
    valid: ExampleSource | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LabeledQuestions:
    """Questions and their labels [O] float64 each; `seed` shuffles options, None leaves them.

    `class_weights` are those of texts' labels, by name; None weighs all alike.
    """

    questions: Sequence[Question]
    labels: Sequence[np.ndarray]
    seed: int | None = None
    class_weights: Mapping[str, float] | None = None

    def __len__(self) -> int:
        return len(self.questions)

    def read(self, renderer: Renderer, indices: Sequence[int], *, epoch: int | None) -> list[Example]:
        """The questions of these indices, options in the epoch's order."""
        shown = [self._show(index, epoch) for index in indices]
        prompts = renderer.render([question for question, _ in shown])
        pairs = zip(prompts, shown, strict=True)
        return [
            Example(prompt=prompt, labels=labels, weights=self._weights(question))
            for prompt, (question, labels) in pairs
        ]

    def _weights(self, question: Question) -> np.ndarray | None:
        if self.class_weights is None:
            return None
        return np.array([self.class_weights[name] for name in question.options])

    def _show(self, index: int, epoch: int | None) -> tuple[Question, np.ndarray]:
        question, labels = self.questions[index], self.labels[index]
        if self.seed is None or epoch is None:
            return question, labels
        return shuffle_options(question, labels, seed=self.seed, epoch=epoch, index=index)

    def fingerprint(self) -> str:
        """A digest of ids, texts, answers and labels, in order."""
        digest = hashlib.sha256()
        for question, labels in zip(self.questions, self.labels, strict=True):
            texts = [question.id, question.prompt, *question.options, question.context]
            digest.update(json.dumps([*texts, question.answer, labels.tolist()]).encode())
        return digest.hexdigest()


def read_training_set(config: TrainConfig, warnings: RunWarnings) -> TrainingSet:
    """Reads, checks and splits the questions of a run.

    Args:
        config: of any task but lm.
        warnings: where odd rows go, and ids that are in both files.

    Raises:
        InputError: questions that cannot be learned from, naming file, row and column.
    """
    assert config.questions is not None
    questions = read_questions(
        config.questions,
        context_column=config.context_column,
        id_column=config.id_column,
        limit=config.limit,
        warnings=warnings,
    )
    needs_answers = config.soft_labels is None or config.soft_weight < 1
    check_questions(questions, config.questions, needs_answers=needs_answers)
    soft = (
        read_soft_labels(config.soft_labels, questions, temperature=config.soft_temperature)
        if config.soft_labels is not None
        else {}
    )
    questions, valid = _split(questions, config, warnings)
    labels = mix_labels(questions, soft, config.soft_weight)
    check_labels(labels, config)
    train = LabeledQuestions(
        questions=questions, labels=labels, seed=config.seed if config.shuffle_options else None
    )
    if valid is None:
        return TrainingSet(train=train)
    return TrainingSet(
        train=train, valid=LabeledQuestions(questions=valid, labels=mix_labels(valid, {}, 0.0))
    )


def check_questions(questions: Sequence[Question], path: Path, *, needs_answers: bool = True) -> None:
    """Raises InputError at the first question that cannot be learned from, naming row and column."""
    if needs_answers:
        _check_answers(questions, path)
    for question in questions:
        where = f"{path}, row {question.row}"
        if len(question.options) < 2:
            raise InputError(
                f"{where}: {len(question.options)} option(s) (question id {question.id!r}), "
                "expected two or more"
            )
        if "" in question.options:
            column = LETTERS[question.options.index("")]
            raise InputError(
                f"{where}, column {column!r}: empty option (question id {question.id!r}); "
                "expected text to learn from"
            )


def _check_answers(questions: Sequence[Question], path: Path) -> None:
    missing = [question for question in questions if question.answer is None]
    if missing and len(missing) == len(questions):
        raise InputError(f"{path}: no answers; expected a column 'answer' to learn from")
    if missing:
        raise InputError(
            f"{path}, row {missing[0].row}, column 'answer': no answer (question id {missing[0].id!r}); "
            f"expected one in every row ({len(missing)} row(s) have none)"
        )


def check_labels(labels: Sequence[np.ndarray], config: TrainConfig) -> None:
    """Raises InputError when the labels [O] tell nothing apart.

    That is when every option of every question has the same label, or when the right option stands at the
    same place in all questions and --no-shuffle-options keeps it there.
    """
    if all(np.ptp(shares) < 1e-9 for shares in labels):
        raise InputError(
            f"--soft-labels: {config.soft_labels}: every option has the same probability in all questions; "
            "expected scores that tell them apart"
        )
    first = labels[0]
    alike = all(
        len(shares) == len(first) and np.allclose(shares, first, rtol=0, atol=1e-9) for shares in labels
    )
    best = {int(shares.argmax()) for shares in labels}
    if not config.shuffle_options and (len(best) == 1 or alike):
        raise InputError(
            f"{config.questions}, column 'answer': one class only, every answer is {LETTERS[best.pop()]}; "
            "expected different ones, or no --no-shuffle-options"
        )


def _split(
    questions: list[Question], config: TrainConfig, warnings: RunWarnings
) -> tuple[list[Question], list[Question] | None]:
    if config.valid is not None:
        return questions, _read_valid(questions, config.valid, config, warnings)
    if not config.valid_share:
        return questions, None
    assert config.questions is not None
    kept, valid = hold_out_share(questions, config, "question")
    _check_answers(valid, config.questions)
    return kept, valid


def hold_out_share(
    questions: Sequence[Question], config: TrainConfig, what: str
) -> tuple[list[Question], list[Question]]:
    """What is trained on, and the --valid-share that is held out; `what` names one in the message.

    Raises:
        InputError: there is one alone.
    """
    if len(questions) < 2:
        raise InputError(f"--valid-share: {config.questions} has one {what}; expected two or more to split")
    kept, held_out = hold_out(len(questions), config.valid_share, config.seed)
    return [questions[index] for index in kept], [questions[index] for index in held_out]


def _read_valid(
    questions: Sequence[Question], path: Path, config: TrainConfig, warnings: RunWarnings
) -> list[Question]:
    valid = read_questions(
        path, context_column=config.context_column, id_column=config.id_column, warnings=warnings
    )
    _check_answers(valid, path)
    trained_ids = {question.id for question in questions}
    both = [question.id for question in valid if question.id in trained_ids]
    if both:
        warnings.say(
            f"--valid: {path}: {len(both)} id(s) are also in {config.questions}, first "
            f"{', '.join(both[:SHOWN_IDS])}; the evaluations may be too good"
        )
    return valid
