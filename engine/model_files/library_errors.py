"""What a library raises about a file of somebody else becomes one line that names the file."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
        with _stderr_held_back():
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


_STDERR = 2
_holding_back = threading.Lock()


@contextmanager
def _stderr_held_back() -> Iterator[None]:
    """What is written to the process's stderr comes out afterwards, or not at all where an error is raised.

    Panics of Rust are told there, past Python, before they become exceptions. One thread at a time holds it
    back; where the system has no files in memory, nobody does.
    """
    if not hasattr(os, "memfd_create") or not _holding_back.acquire(blocking=False):
        yield
        return
    try:
        with open(os.memfd_create("stderr"), "w+b") as held:
            with _redirected(held.fileno()):
                yield
            held.seek(0)
            # A stderr that is closed has no reader.
            with suppress(OSError):
                os.write(_STDERR, held.read())
    finally:
        _holding_back.release()


@contextmanager
def _redirected(target: int) -> Iterator[None]:
    sys.stderr.flush()
    try:
        kept = os.dup(_STDERR)
    except OSError:
        yield
        return
    os.dup2(target, _STDERR)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, _STDERR)
        os.close(kept)
