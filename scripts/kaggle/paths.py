"""Which values of a pipeline's YAML are paths, for whoever wants to know or to change them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from strata.retrieval.search_config import SearchConfig

MEMBER_PATHS = ("model", "adapter", "shots", "template")
Change = Callable[[str], str]


def change_paths(values: dict[str, Any], change: Change) -> dict[str, Any]:
    """A copy of a checked pipeline file's values in which every path is what `change` makes of it."""
    changed = copy.deepcopy(values)
    for member in (changed.get("members") or {}).values():
        _change(member, MEMBER_PATHS, change)
    for source in (changed.get("retrieval") or {}).values():
        _change(source, search_paths(), change)
    _change(changed, ("fitted",), change)
    return changed


def list_paths(values: dict[str, Any]) -> list[str]:
    """All paths, each once, in the file's order."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    change_paths(values, note)
    return list(dict.fromkeys(found))


def search_paths() -> tuple[str, ...]:
    """Settings of a context source that are paths."""
    hints = get_type_hints(SearchConfig)
    return tuple(field.name for field in fields(SearchConfig) if "Path" in str(hints[field.name]))


def _change(section: dict[str, Any], names: tuple[str, ...], change: Change) -> None:
    for name in names:
        value = section.get(name)
        if isinstance(value, list):
            section[name] = [change(str(text)) for text in value]
        elif isinstance(value, str) and _is_path(name, value):
            section[name] = change(value)


def _is_path(name: str, value: str) -> bool:
    """A template may also be one that strata knows by name."""
    return name != "template" or "/" in value or bool(Path(value).suffix)
