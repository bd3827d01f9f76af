"""Gives a reader odd inputs and says what is wrong: it may return, or raise an InputError of one line.

An input is told by its number alone: the same number gives the same input on every machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from strata.engine.types import InputError

SECONDS = 10
MAX_GROWTH_KIB = 1 << 20
MAX_MESSAGE_CHARS = 2_000

Mutate = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True, kw_only=True)
class FuzzedReader:
    """A reader and good input for it.

    `prepare` fills a folder with what the reader needs and returns the good content of `file`; `read` reads
    the folder.
    """

    name: str
    file: str
    prepare: Callable[[Path], bytes]
    mutate: Mutate
    read: Callable[[Path], object]


class TooSlow(BaseException):
    """Raised inside a reader that takes more processor time than SECONDS."""


def make_input(reader: FuzzedReader, good: bytes, number: int) -> bytes:
    """The odd input of a number."""
    return reader.mutate(random.Random(number), good)


def find_fault(reader: FuzzedReader, folder: Path, content: bytes) -> str | None:
    """What is wrong with what the reader does with this content; None when nothing is.

    Faults of one kind have equal texts: the error's type and the last line of ours that it went through.
    """
    (folder / reader.file).write_bytes(content)
    forget_peak()
    before = peak_kib()
    try:
        with _time_limit():
            reader.read(folder)
    except InputError as error:
        message = str(error)
        if len(message.splitlines()) != 1:
            return "the message is not of one line"
        if len(message) > MAX_MESSAGE_CHARS:
            return "the message is too long"
    except TooSlow:
        return f"takes more than {SECONDS} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__} at {_last_line_of_ours(error)}"
    if peak_kib() - before > MAX_GROWTH_KIB:
        return "takes more than a gibibyte"
    return None


def forget_peak() -> None:
    """Makes the peak that of now, so that what was taken before hides nothing; where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_kib() -> int:
    """The most memory that this process had at one time, in KiB."""
    return _of_status("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def below_peak_kib() -> int:
    """How much memory this process can take without its peak telling, in KiB; 0 where that can't be known."""
    return max(peak_kib() - (_of_status("VmRSS:") or peak_kib()), 0)


def _of_status(field: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.partition(field)[2].split()[0])


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*arguments: object) -> None:
        raise TooSlow

    earlier = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, earlier)


def _last_line_of_ours(error: BaseException) -> str:
    others = ("/tests/", "/site-packages/", "/lib/python")
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(other in frame.filename for other in others)
    ]
    return f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "no line of ours"


def keep_input(folder: Path, reader: FuzzedReader, content: bytes) -> Path:
    """Writes an input that a reader failed on, for later runs to try again; returns its path."""
    path = folder / reader.name / f"{hashlib.sha256(content).hexdigest()[:12]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
