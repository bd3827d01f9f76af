"""Answers as people write them: a letter, a number, or the option's text; one form a file.

The form is the first that fits all rows of a file, so that no row is read by another rule than its neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strata.engine.types import LETTERS, InputError

_NUMBER = re.compile(r"\s*(\d{1,9})(?:\.0*)?\s*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class GivenAnswer:
    """An answer as a file gives it: `where` names its row, `options` are the row's texts, None for absent.

    `counts_from_zero`: the row lists its options and gives a number, which is documented to be an index.
    """

    where: str
    value: object
    options: Sequence[str | None]
    counts_from_zero: bool = False

    @property
    def is_known(self) -> bool:
        """Whether there is an answer."""
        return self.value is not None and not (isinstance(self.value, str) and not self.value.strip())


def read_answers(given: Sequence[GivenAnswer], first_number: int | None) -> tuple[list[int | None], str]:
    """Indexes of the answers, None where there is none, and what to say of how they were read.

    Args:
        given: one a row.
        first_number: of option columns that are numbered, which answers then count from; None elsewhere.

    Raises:
        InputError: an answer that names no option, or answers of which it cannot be told what they name.
    """
    known = [answer for answer in given if answer.is_known]
    read, note = _choose_form(known, first_number)
    return [read(answer) if answer.is_known else None for answer in given], note


Reader = Callable[[GivenAnswer], "int | None"]


def _choose_form(known: Sequence[GivenAnswer], first_number: int | None) -> tuple[Reader, str]:
    if all(_letter(answer) is not None for answer in known):
        return _letter, ""
    if all(answer.counts_from_zero and _index(answer, 0) is not None for answer in known):
        return _from(0), ""
    firsts = (0, 1) if first_number is None else (first_number,)
    fitting = [first for first in firsts if all(_index(answer, first) is not None for answer in known)]
    is_indexed = any(answer.counts_from_zero for answer in known)
    as_text = all(_text(answer) is not None for answer in known)
    if fitting and not is_indexed:
        return _choose_number(known, fitting, as_text)
    if as_text:
        return _text, "answers as the options' texts"
    return _refusing(_letter if _count(known, _letter) >= _count(known, _text) else _text), ""


def _choose_number(known: Sequence[GivenAnswer], fitting: list[int], as_text: bool) -> tuple[Reader, str]:
    if len(fitting) > 1:
        raise InputError(
            f"{known[0].where}, column 'answer': {known[0].value!r} may count from 0 or from 1; "
            "expected letters, or a number in the file that tells"
        )
    read = _from(fitting[0])
    if as_text:
        for answer in known:
            if _text(answer) != read(answer):
                raise InputError(
                    f"{answer.where}, column 'answer': {answer.value!r} may be an option's text or its "
                    "number; expected letters"
                )
    return read, f"answers as numbers from {fitting[0]}"


def _count(known: Sequence[GivenAnswer], read: Reader) -> int:
    return sum(read(answer) is not None for answer in known)


def _letter(answer: GivenAnswer) -> int | None:
    text = answer.value.strip().upper() if isinstance(answer.value, str) else ""
    index = LETTERS.find(text) if len(text) == 1 else -1
    return index if 0 <= index < len(answer.options) else None


def _text(answer: GivenAnswer) -> int | None:
    text = str(answer.value).strip()
    places = [place for place, option in enumerate(answer.options) if option and option.strip() == text]
    return places[0] if len(places) == 1 else None


def _from(first: int) -> Reader:
    def read(answer: GivenAnswer) -> int | None:
        return _index(answer, first)

    return read


def _index(answer: GivenAnswer, first: int) -> int | None:
    value = answer.value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    match = _NUMBER.fullmatch(str(value))
    index = int(match[1]) - first if match else -1
    return index if 0 <= index < len(answer.options) else None


def _refusing(read: Reader) -> Reader:
    def read_or_refuse(answer: GivenAnswer) -> int:
        index = read(answer) if isinstance(answer.value, str) else _index(answer, 0)
        if index is None:
            last = len(answer.options) - 1
            letters = f"a letter from A to {LETTERS[last]}"
            other = "an option's text" if isinstance(answer.value, str) else f"an index from 0 to {last}"
            raise InputError(
                f"{answer.where}, column 'answer': unknown answer {str(answer.value)[:60]!r}, "
                f"expected {letters} or {other}"
            )
        return index

    return read_or_refuse
