"""Turns whatever a library raises over a file or folder that it cannot use into one line that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from strata.engine.types import InputError

PANIC = "PanicException"
"""What a library in Rust raises when it panics: no Exception, and of a module that cannot be imported."""

MAX_REASON_CHARS = 300


@contextmanager
def library_errors(tell: Callable[[str], InputError]) -> Iterator[None]:
    """Raises `tell(reason)` for any error inside; an InputError and an interrupt go through as they are.

    Libraries meet broken files with errors of every kind (KeyError, RecursionError, their own), so that a
    list of them is never whole. For calls of a library on files from outside only.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise tell(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """A library's message on one line, cut where it is long, without characters a terminal might obey."""
    printable = "".join(character if character.isprintable() else " " for character in str(error))
    reason = " ".join(printable.split()) or type(error).__name__
    return reason if len(reason) <= MAX_REASON_CHARS else f"{reason[:MAX_REASON_CHARS]}..."
