"""Wall time a run may take: how it is written, and how careful one is with it."""

from __future__ import annotations

from strata.engine.types import InputError

SAFETY = 1.1
"""A group is begun when this many times the longest group so far still fits before the deadline."""


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
