"""How much a template's values take up, and how much text its filters and methods would make of them.

Bounds from above, in characters or items, cheap beside making the text. Knows nothing of Jinja's environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.sandbox import SecurityError

MAX_ITEMS = 1 << 20
"""Items of the largest list, those of lists in it included."""
LIST_CHARACTERS = 64
"""What an empty list counts for."""
MAX_NUMBER = 100
"""Largest number of digits, or of blanks an indent, that a filter is asked for."""


def size_of(value: Any) -> int:
    """Characters of a text, or of all texts and items of a container.

    Raises:
        SecurityError: a container of more than MAX_ITEMS items.
    """
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, (list, tuple, dict)):
        return 1
    size = num_items = 0
    pending = [value]
    while pending:
        container = pending.pop()
        items = list(container.items()) if isinstance(container, dict) else container
        num_items += len(items)
        if num_items > MAX_ITEMS:
            raise SecurityError(f"makes a list of more than {MAX_ITEMS:,} items")
        for item in items:
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, (list, tuple, dict)):
                pending.append(item)
        size += len(items)
    return size


def field_widths(text: str) -> int:
    """Widths and precisions of a text's printf-style fields, added up.

    Raises:
        SecurityError: one comes from an argument.
    """
    widths = [width for match in _FIELD.finditer(text) for width in match.groups() if width]
    if "*" in widths:
        raise SecurityError("formats with a width that comes from an argument")
    return sum(int(width) for width in widths)


_FIELD = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?")


def _of_center(text: Any, width: int = 80, fillchar: str = " ") -> int:
    return width


def _of_zfill(text: str, width: int) -> int:
    return width


def _of_batch(values: Any, linecount: int, fill_with: Any = None) -> int:
    return linecount * LIST_CHARACTERS


def _of_slice(values: Any, slices: int, fill_with: Any = None) -> int:
    return slices * LIST_CHARACTERS


def _of_tabs(text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * tabsize


def _of_indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> int:
    text = str(s)
    return len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width)


def _of_replace(s: Any, old: Any, new: Any, count: int | None = None) -> int:
    text, old, new = str(s), str(old), str(new)
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _of_join(value: list[Any], d: Any = "", attribute: Any = None) -> int:
    return size_of(value) + len(value) * len(str(d))


def _of_joined(separator: str, values: list[Any]) -> int:
    return size_of(values) + len(values) * len(separator)


def _of_wrap(
    s: Any,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,
) -> int:
    text = str(s)
    return len(text) + (len(text) // max(width, 1) + text.count("\n") + 1) * len(wrapstring or "\n")


def _of_format(value: Any, *given: Any, **named: Any) -> int:
    text = str(value)
    return len(text) + field_widths(text) + size_of(given) + size_of(named)


def _of_round(value: Any, precision: int = 0, method: str = "common") -> int:
    return bear(precision)


def _of_json(value: Any, indent: int | None = None) -> int:
    return bear(indent or 0)


def bear(number: int) -> int:
    """Nothing, for a number of digits or blanks that a filter may be asked for.

    Raises:
        SecurityError: it is larger.
    """
    if abs(number) > MAX_NUMBER:
        raise SecurityError(f"asks a filter for {number}; expected at most {MAX_NUMBER} digits or blanks")
    return 0


FILTER_GROWTH: Mapping[str, Callable[..., int]] = {
    "batch": _of_batch,
    "center": _of_center,
    "format": _of_format,
    "indent": _of_indent,
    "join": _of_join,
    "replace": _of_replace,
    "round": _of_round,
    "slice": _of_slice,
    "tojson": _of_json,
    "wordwrap": _of_wrap,
}
"""What filters make, by name, from their arguments; the others make about as much as they are given."""

METHOD_GROWTH: Mapping[str, Callable[..., int]] = {
    "center": _of_center,
    "expandtabs": _of_tabs,
    "join": _of_joined,
    "ljust": _of_center,
    "replace": _of_replace,
    "rjust": _of_center,
    "zfill": _of_zfill,
}
"""The same for methods of texts."""
