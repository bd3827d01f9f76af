"""Wall time a run may take: how it is written, and whether there is time for more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from strata.engine.types import InputError

SAFETY = 1.1
"""Work is begun when this many times the longest piece so far still fits before the deadline."""


class DeadlinePassedError(Exception):
    """Work was given up, since its time is over."""


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """A moment on `time.perf_counter`'s clock by which work should have ended; None for never.

    `gives_up`: work that is under way then is given up, and not only no further work begun.
    """

    at_s: float | None = None
    gives_up: bool = False

    @classmethod
    def after(cls, started_s: float, duration: str | None) -> Deadline:
        """The deadline of a run that began at `started_s` and may take `--deadline`.

        Raises:
            InputError: not a duration.
        """
        return cls(at_s=None if duration is None else started_s + parse_duration_s("--deadline", duration))

    def allows(self, longest_s: float) -> bool:
        """Whether a piece of work as long as the longest so far may be begun."""
        return self.at_s is None or perf_counter() + SAFETY * longest_s <= self.at_s

    @property
    def left_s(self) -> float:
        """Seconds until then; negative afterwards, infinite without a deadline."""
        return float("inf") if self.at_s is None else self.at_s - perf_counter()

    def guard(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        """The function, which raises DeadlinePassedError instead once work is to be given up."""
        if not self.gives_up:
            return advance

        def checked(count: int) -> None:
            if self.left_s < 0:
                raise DeadlinePassedError
            advance(count)

        return checked


def parse_duration_s(flag: str, text: str) -> float:
    """Seconds of a duration such as 8.5h, 90m or 600s.

    Raises:
        InputError: not a duration.
    """
    unit_s = {"h": 3600.0, "m": 60.0, "s": 1.0}.get(text[-1:], 0.0)
    try:
        seconds = float(text[:-1]) * unit_s
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"{flag}: {text!r} is no duration; expected one such as 8.5h, 90m or 600s")
    return seconds
