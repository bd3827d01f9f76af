"""Cells of question files as texts, or refused in one line. Knows no columns."""

from __future__ import annotations

from strata.engine.questions.parquet_rows import Unreadable
from strata.engine.types import InputError

MAX_CHARACTERS = 1_000_000
"""Of a question or an option; the tokens of more would not fit any model."""


def as_text(value: object, where: str) -> str | None:
    """Text of a cell, "" when blank, None when absent.

    Raises:
        InputError: no text, too long a one, or half of a surrogate pair.
    """
    if value is None:
        return None
    if isinstance(value, Unreadable):
        raise InputError(f"{where}: a {value.kind} out of range, expected text")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{where}: is a {type(value).__name__}, expected text")
    text = str(value)
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{where}: {len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{where}: holds half of a surrogate pair, expected valid Unicode")
    return text if text.strip() else ""
