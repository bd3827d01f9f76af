"""Settings of an adapter by module: regular expressions of module names, with a bound on what they may take.

Matches as PEFT does (peft.utils.other.get_pattern_key), by the `regex` library, which can be stopped. Knows
nothing of what the settings mean.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Generic, TypeVar

import regex

from strata.engine.json_files import shown
from strata.engine.types import InputError

MAX_PATTERN_CHARACTERS = 1_000
MATCHING_S = 1.0
"""What all slow matches with one set of patterns may take."""
MATCHING_WITH_RE_S = 5.0
USUAL_MATCH_S = 1e-3
"""A match that takes less is not slow: real ones take microseconds, but there may be a million."""

Value = TypeVar("Value", int, float)


class ModulePatterns(Generic[Value]):
    """Values by a regular expression for the end of a module's full name; the first that matches wins.

    Args:
        values: regular expression -> value.
        where: the file and the setting, which begins messages.

    Raises:
        InputError: a key that is no regular expression, or a long one.
    """

    def __init__(self, values: Mapping[str, Value], where: str = "patterns") -> None:
        self._values: dict[str, tuple[regex.Pattern[str], Value]] = {
            key: (_compile(key, where), value) for key, value in values.items()
        }
        self._where = where
        self._left_s = MATCHING_S

    def value_of(self, module_name: str, default: Value) -> Value:
        """The value for the module of that full name.

        Raises:
            InputError: matching takes too long.
        """
        for key, (pattern, value) in self._values.items():
            if self._matches(key, pattern, module_name):
                return value
        return default

    def _matches(self, key: str, pattern: regex.Pattern[str], module_name: str) -> bool:
        begin = perf_counter()
        try:
            return pattern.match(module_name, timeout=max(self._left_s, 1e-3)) is not None
        except TimeoutError:
            raise InputError(
                f"{self._where}: {shown(key)} takes more than {MATCHING_S:.0f} s to match module names; "
                "expected a plain pattern"
            ) from None
        finally:
            elapsed_s = perf_counter() - begin
            self._left_s -= elapsed_s if elapsed_s > USUAL_MATCH_S else 0.0


def check_matching(patterns: Sequence[str], module_names: Sequence[str], where: str) -> None:
    """Checks that Python's own `re`, with which PEFT matches, comes to an end; another process tries it.

    Raises:
        InputError: a pattern that is no regular expression, or matching takes too long.
    """
    for key in patterns:
        _compile(key, where)
    if all(re.fullmatch(r"[\w.-]*", key) for key in patterns):
        return
    given = json.dumps([[rf"(.*\.)?({key})$" for key in patterns], list(module_names)])
    try:
        command = [sys.executable, "-I", "-S", "-c", MATCH_ALL]
        subprocess.run(command, input=given, text=True, check=True, timeout=MATCHING_WITH_RE_S)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{where}: takes more than {MATCHING_WITH_RE_S:.0f} s to match module names; expected plain "
            "patterns"
        ) from None


MATCH_ALL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in map(re.compile, patterns):
    for name in names:
        pattern.match(name)
"""


def _compile(key: str, where: str) -> regex.Pattern[str]:
    if len(key) > MAX_PATTERN_CHARACTERS:
        raise InputError(
            f"{where}: a regular expression of {len(key)} characters; expected at most "
            f"{MAX_PATTERN_CHARACTERS}"
        )
    whole = rf"(.*\.)?({key})$"
    try:
        # What Python's own module refuses, PEFT could not use either.
        re.compile(whole)
        return regex.compile(whole)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise InputError(f"{where}: {shown(key)} is not a regular expression ({error})") from None
