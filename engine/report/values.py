"""Values of a record as text, and safe ways into its parts, any of which may be missing or null."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def section(record: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A part of the record, by its keys from outside in; empty when it is missing or null."""
    for key in keys:
        record = record.get(key) or {}
    return record


def is_number(value: object) -> bool:
    """True for int and float, not for bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def plain(value: object) -> str:
    """A list as comma-separated text, anything else as text."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


PLAIN_NAMES = ("adapter", "best", "model")
"""What `strata train` calls folders in every run: the folder above tells them apart."""


def file_name(path: object) -> str:
    """The last part of a path that may end in a slash, or the last two where the last is a plain name."""
    parts = str(path).rstrip("/").split("/")
    return "/".join(parts[-2:] if parts[-1] in PLAIN_NAMES else parts[-1:])


def format_value(name: str, value: object) -> str:
    """A value as text in the unit that its name ends in; empty for None.

    `_bytes` are shown in GiB (MiB below 0.1 GiB), `_fraction` as a percentage, seconds as people say them,
    `map_at_3` and `accuracy` to three digits, whole numbers with thousands separators, others to four
    significant digits.
    """
    if value is None:
        return ""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return plain(value)
    if name.endswith("_bytes"):
        return f"{value / 2**30:,.2f} GiB" if value >= 0.1 * 2**30 else f"{value / 2**20:,.2f} MiB"
    if name.endswith("_fraction"):
        return f"{100 * value:.1f}%"
    if name == "seconds" or (name.endswith("_s") and not name.endswith("per_s")):
        return human_time(value)
    if name.endswith(("map_at_3", "accuracy", "macro_f1")):
        return f"{value:.3f}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def human_time(seconds: float) -> str:
    """A duration as people say it: 12 ms, 0.40 s, 52 s, 7 min 12 s, 3 h 05 min."""
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 0.1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with dotted names; None is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + str(key), value


def format_unit(name: str, value: object) -> str:
    """As `format_value`; a dotted name takes its unit from the first part that has one (peak_bytes.cpu)."""
    parts = name.split(".")
    return format_value(
        next((part for part in parts if part.endswith(("_bytes", "_fraction"))), parts[-1]), value
    )


def ratio(measured: object, planned: object) -> str:
    """Measured over planned to two decimals; empty unless both are numbers and the second is not 0."""
    if isinstance(measured, (int, float)) and isinstance(planned, (int, float)) and is_number(planned):
        return f"{measured / planned:.2f}" if planned else ""
    return ""


def shorten(text: str, num_characters: int) -> str:
    """The text on one line, cut at so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= num_characters else line[: num_characters - 3].rstrip() + "..."


def distinct(values: Sequence[Any]) -> list[Any]:
    """Values in order of first appearance, those in lists on their own; None is left out."""
    found: dict[str, Any] = {}
    for value in values:
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if one is not None:
                found.setdefault(str(one), one)
    return list(found.values())
