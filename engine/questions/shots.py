"""Reads few-shot examples: answered questions of a file like any other."""

from __future__ import annotations

from pathlib import Path

from strata.engine.questions.question_file import read_questions
from strata.engine.types import InputError, Question, RunWarnings


def read_shots(path: Path, num_shots: int, *, context_column: str) -> tuple[Question, ...]:
    """The first answered questions of a file, each once: one more than asked for, where there is.

    The one more takes the place of an example that is itself the question asked.

    Args:
        path: a question file.
        num_shots: how many a question is to be shown.
        context_column: as for the questions that are asked.

    Raises:
        InputError: an unreadable file, fewer answered questions than asked for, or a number below 1.
    """
    if num_shots < 1:
        raise InputError(f"--num-shots {num_shots}: expected at least 1")
    answered: dict[tuple[str, ...], Question] = {}
    for question in read_questions(path, context_column=context_column, warnings=RunWarnings()):
        if question.answer is not None:
            answered.setdefault((question.prompt, *question.options), question)
    if len(answered) < num_shots:
        raise InputError(
            f"--shots {path}: {len(answered)} question(s) with an answer; expected at least {num_shots} "
            "(--num-shots)"
        )
    return tuple(answered.values())[: num_shots + 1]
