"""Copies of good files with one thing changed, and what is expected of opening them. Knows no reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from strata.engine.types import InputError

LONGEST_S = 10.0
"""What opening a bad file may take; a hang, not a timing, is what is looked for."""

DEEP_LIST = "[" * 100_000 + "]" * 100_000
DEEP_OBJECT = '{"a":' * 100_000 + "1" + "}" * 100_000


def copy_folder(source: Path, target: Path) -> Path:
    """A copy whose files may be changed."""
    return shutil.copytree(source, target)


def change_json(file: Path, change: dict[str, Any] | Callable[[Any], Any]) -> None:
    """Sets keys of a JSON file, or makes of its content what a function returns."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content = change(content) if callable(change) else content | change
    file.write_text(json.dumps(content), encoding="utf-8")


def refusal(call: Callable[[], object], *told: str) -> str:
    """What the call is refused with: an InputError of one line that holds all of `told`, in time."""
    begin = perf_counter()
    with pytest.raises(InputError) as caught:
        call()
    assert perf_counter() - begin < LONGEST_S
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1_000, "a line, not a page"
    for part in told:
        assert part in message
    return message
