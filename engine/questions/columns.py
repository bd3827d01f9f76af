"""Which column of a question file is which, under the names that people give them. Knows nothing of rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from strata.engine.types import LETTERS, InputError

ROLES = ("id", "prompt", "question", "options", "answer", "context")
OTHER_NAMES = {"answer": ("answerkey", "answer_key"), "question": ("question_stem",)}
"""Names that mean a role and nothing else, for files that have no column of its own name."""
INDEX_COLUMNS = ("", "Unnamed: 0", "__index_level_0__")
"""What pandas calls its index where it has no name."""
LOOKALIKES = {
    "answer": ("correct", "correct_answer", "correct_option", "label", "target"),
    "context": ("article", "contexts", "document", "evidence", "passage", "passages", "support"),
}
"""Columns that may be meant for a role that a file has no column for: named, not used."""
LEAST_ALIKE = 0.8
"""Of a misspelt name, by difflib's ratio: "answrer" for "answer" has 0.92."""

_OPTION = re.compile(r"(option|choice|opt|op)_?([a-z]|\d{1,2})")


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """`names`: our name by the file's, where they differ; what to say of that; columns that are not used.

    `first_number` is that of numbered option columns: answers count from it.
    """

    names: dict[str, str]
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    first_number: int | None = None


def recognize_columns(path: Path, columns: Sequence[str]) -> ColumnNames:
    """Finds the columns of a question file; exact names come first, then those alike but for case.

    Raises:
        InputError: two columns that are alike.
    """
    names = _name_roles(path, columns)
    notes = [f"column {raw!r} as {name!r}" for raw, name in names.items()]
    if "id" not in columns and "id" not in names.values():
        index = next((name for name in INDEX_COLUMNS if name in columns), None)
        if index is not None:
            names[index] = "id"
            notes.append("the index column as ids")
    options, first_number = _name_options(columns)
    if options:
        shown = list(options)
        notes.append(f"options in {shown[0]!r} to {shown[-1]!r}")
    return ColumnNames(
        names=names | options,
        notes=tuple(notes),
        unused=_find_unused(columns, names),
        first_number=first_number,
    )


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().casefold())


def _name_roles(path: Path, columns: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for role in ROLES:
        if role in columns:
            continue
        alike = [column for column in columns if _plain(column) == role]
        if len(alike) > 1:
            raise InputError(f"{path}: columns {alike[0]!r} and {alike[1]!r}; expected one {role!r}")
        names |= dict.fromkeys(alike or _other_names(columns, role), role)
    if "options" not in columns and "options" not in names.values() and "choices" in columns:
        names["choices"] = "options"
    return names


def _other_names(columns: Sequence[str], role: str) -> list[str]:
    others = OTHER_NAMES.get(role, ())
    return [column for column in columns if _plain(column) in others][:1]


def _name_options(columns: Sequence[str]) -> tuple[dict[str, str], int | None]:
    """Letters by column, and the first number of numbered columns; nothing where A, B, ... are there."""
    if sum(column in LETTERS for column in columns if len(column) == 1) >= 2:
        return {}, None
    families: dict[tuple[str, bool], dict[int, str]] = {}
    for column in columns:
        match = _OPTION.fullmatch(_plain(column))
        label = match[2] if match else _plain(column)
        if match is None and not (len(label) == 1 and label.upper() in LETTERS):
            continue
        number = int(label) if label.isdigit() else LETTERS.index(label.upper())
        families.setdefault((match[1] if match else "", label.isdigit()), {})[number] = column
    for (_, is_numbered), found in families.items():
        first = min(found)
        if (
            len(found) >= 2
            and first in ((0, 1) if is_numbered else (0,))
            and max(found) - first < len(LETTERS)
        ):
            named = {found[number]: LETTERS[number - first] for number in sorted(found)}
            return named, first if is_numbered else None
    return {}, None


def _looks_like(name: str, role: str) -> bool:
    """Whether a column may be meant for a role that is optional, by another word or misspelt."""
    if role not in LOOKALIKES:
        return False
    return name in LOOKALIKES[role] or bool(get_close_matches(name, [role], cutoff=LEAST_ALIKE))


def _find_unused(columns: Sequence[str], names: dict[str, str]) -> tuple[str, ...]:
    unused = []
    for role in ROLES:
        taken = {role} | {raw for raw, name in names.items() if name == role}
        others = [column for column in columns if _plain(column) == role and column not in taken]
        if not taken & set(columns):
            others += [column for column in columns if _looks_like(_plain(column), role)]
        unused += [f"column {column!r} is not used; expected {role!r} as its name" for column in others]
    return tuple(unused)
