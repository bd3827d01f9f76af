"""Makes a page of one record, a JSON object or a Parquet row. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strata.engine.json_files import shown
from strata.engine.types import InputError
from strata.retrieval.types import Page

ID_NAMES = ("_id", "id", "page_id", "docid")
TITLE_NAMES = ("title",)
TEXT_NAMES = ("text", "contents", "content", "body", "passage")
SECTIONS_NAME = "sections"
USUAL_NAMES = (*ID_NAMES, *TITLE_NAMES, *TEXT_NAMES, SECTIONS_NAME)
NUM_LISTED = 20
"""How many fields a message lists."""


@dataclass(frozen=True, kw_only=True)
class FieldNames:
    """Which fields hold a page's id, title and text; None takes the first usual name that is there."""

    id: str | None = None
    title: str | None = None
    text: str | None = None


def page_of_record(record: Mapping[str, Any], names: FieldNames, place: str, default_id: str) -> Page:
    """Makes a page of a JSON object or a Parquet row.

    Args:
        record: its fields; text may be null, title and id absent; `sections` are [heading, text] pairs or
            objects with `heading` (or `title`) and `text`.
        names: where the fields are.
        place: file and line, for messages.
        default_id: the id of a page that has none.

    Raises:
        InputError: no text field, a named field is absent, or one holds something else than text.
    """
    sections = _sections(record.get(SECTIONS_NAME), place)
    text_name = _name(record, names.text, TEXT_NAMES, place, "--text-field")
    if text_name is None and not sections:
        raise InputError(
            f"{place}: no text; expected one of {', '.join(TEXT_NAMES)} (or --text-field); it has "
            f"{_listed(record)}"
        )
    title_name = _name(record, names.title, TITLE_NAMES, place, "--title-field")
    id_name = _name(record, names.id, ID_NAMES, place, "--id-field")
    id = record[id_name] if id_name else None
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    text = _text(record[text_name], place, text_name) if text_name else "\n".join(t for _, t in sections)
    return Page(
        id=_text(id, place, id_name or "id") or default_id,
        title=_text(record[title_name], place, title_name).strip() if title_name else "",
        text=text,
        sections=sections,
    )


def _name(
    record: Mapping[str, Any], named: str | None, usual: tuple[str, ...], place: str, flag: str
) -> str | None:
    if named is None:
        return next((name for name in usual if name in record), None)
    if named not in record:
        raise InputError(f"{place}: no field {named!r} ({flag}); it has {_listed(record)}")
    return named


def _listed(record: Mapping[str, Any]) -> str:
    names = [shown(name) for name in list(record)[:NUM_LISTED]]
    return ", ".join([*names, *(["..."] if len(record) > NUM_LISTED else [])]) or "nothing"


def _text(value: Any, place: str, name: str) -> str:
    """The value as text that UTF-8 can hold; null is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{place}: {name} is a {type(value).__name__}; expected text")
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _sections(value: Any, place: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InputError(f"{place}: {SECTIONS_NAME} is a {type(value).__name__}; expected a list")
    return tuple(_section(entry, place) for entry in value)


def _section(entry: Any, place: str) -> tuple[str, str]:
    if isinstance(entry, Mapping) and "text" in entry:
        heading, text = entry.get("heading", entry.get("title")), entry["text"]
    elif isinstance(entry, (list, tuple)) and len(entry) == 2:
        heading, text = entry
    else:
        raise InputError(f"{place}: a section is {shown(entry)}; expected heading and text")
    return _text(heading, place, "a heading").strip(), _text(text, place, "a section's text")
