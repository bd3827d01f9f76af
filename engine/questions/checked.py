"""Questions that a caller's own code has made, checked as a question file's rows are when they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from strata.engine.json_files import shown
from strata.engine.types import InputError, Question

TEXTS = ("id", "prompt", "context")


def check_questions(questions: Iterable[Question]) -> list[Question]:
    """The questions as a list.

    Raises:
        InputError: no questions, one whose fields are of other types, an answer that is no option's index, or
            an id that comes twice.
    """
    if not isinstance(questions, Iterable) or isinstance(questions, (str, bytes, Mapping)):
        raise InputError(f"questions: {shown(questions)}; expected a list of Question")
    checked = list(questions)
    for place, question in enumerate(checked):
        if not isinstance(question, Question):
            raise InputError(f"questions[{place}]: {shown(question)}; expected a Question")
        misfit = _misfit(question)
        if misfit is not None:
            raise InputError(f"questions[{place}].{misfit}")
    twice = next((name for name, num in Counter(each.id for each in checked).items() if num > 1), None)
    if twice is not None:
        raise InputError(f"questions: id {twice!r} comes twice; expected each id once")
    return checked


def _misfit(question: Question) -> str | None:
    """What is wrong with a question, and where; None where nothing is."""
    for name in TEXTS:
        value = getattr(question, name)
        if not isinstance(value, str):
            return f"{name}: {shown(value)}; expected a text"
    options: Any = question.options
    if not isinstance(options, (tuple, list)) or not options:
        return f"options: {shown(options)}; expected a tuple of texts, at least one"
    for place, option in enumerate(options):
        if not isinstance(option, str):
            return f"options[{place}]: {shown(option)}; expected a text"
    answer: Any = question.answer
    if answer is None:
        return None
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return None
    return f"answer: {shown(answer)}; expected None, or an option's index from 0 to {len(options) - 1}"
