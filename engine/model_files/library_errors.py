"""What a library raises about a file of somebody else becomes one line that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from strata.engine.types import InputError

SHOWN_CHARACTERS = 300


@contextmanager
def one_line(where: object, told: str) -> Iterator[None]:
    """Around a library's call, and nothing else: whatever it raises becomes an InputError.

    Args:
        where: the file or folder, which begins the message.
        told: what the library could not do, such as "transformers cannot read it".

    Raises:
        InputError: the library raised something.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    # Not Exception: tokenizers panics with a BaseException, whose class has no public name.
    except BaseException as error:
        raise InputError(f"{where}: {told}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """What an error says, on one line; with its kind where the text alone tells little."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
