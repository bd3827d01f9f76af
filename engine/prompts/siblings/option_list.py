"""Finds the options that a prompt lists, each with the marks around it. Knows no tokens.

As everywhere, a text is looked at only through the template: a second rendering, with markers for options,
tells what stands before the list, between two options and behind the list. A list is a sequence of blocks
that differ in nothing but the option: what stands between two options is the end of one block and the
beginning of the next, and the same as what stands around the first and the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from strata.engine.types import InputError

# Random, so that no question's text can hold them.
_LETTER_MARKER = f"letter-{uuid4().hex}"
_TEXT_MARKER = f"listed-{uuid4().hex}"
MARKED_OPTIONS = ((_LETTER_MARKER, _TEXT_MARKER),) * 3
"""What a template is given as its options, to see how it lists them."""


def find_listed(text: str, marked: str, options: Sequence[str], where: str) -> tuple[tuple[int, int], ...]:
    """Spans of the blocks in which a text lists options, in order.

    Args:
        text: rendered with the options.
        marked: rendered with MARKED_OPTIONS in their place, and all else the same.
        options: in the order shown.
        where: names the template, for messages.

    Raises:
        InputError: the text does not list them, once, in blocks that differ in nothing but the option.
    """
    if _LETTER_MARKER in marked:
        raise InputError(
            f"{where}: shows the options' letters, which tell their order; "
            "expected with --debias set a mark that all have, such as '- '"
        )
    before, after, opening, closing = _split_list(marked, where)
    spans, end = [], len(before)
    for option in options:
        start, end = end, end + len(opening) + len(option) + len(closing)
        spans.append((start, end))
    blocks = "".join(opening + option + closing for option in options)
    if not text.startswith(before + blocks + after):
        raise InputError(f"{where}: expected 'options' to be used as they are, with --debias set")
    return tuple(spans)


def _split_list(marked: str, where: str) -> tuple[str, str, str, str]:
    """What stands before and behind the list, and what opens and closes a block of it."""
    parts = marked.split(_TEXT_MARKER)
    if len(parts) != 1 + len(MARKED_OPTIONS):
        raise InputError(f"{where}: expected with --debias set the options to be listed, once")
    first, between, again, last = parts
    for num_opening in range(len(between) + 1):
        closing, opening = between[: len(between) - num_opening], between[len(between) - num_opening :]
        if between == again and first.endswith(opening) and last.startswith(closing):
            return first.removesuffix(opening), last.removeprefix(closing), opening, closing
    raise InputError(
        f"{where}: expected with --debias set the options to be listed in one and the same way, "
        "such as a line each that begins with '- '"
    )
