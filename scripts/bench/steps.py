"""The steps of a bench: told of on stderr, and what they found kept until all are done. Knows no bench.

A step's figures are written to a file as it ends. When the bench is interrupted and called again with the
same settings, on the same machine and commit, finished steps are taken from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from strata.engine.files import write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.progress import Advance, human_time, progress_bar
from strata.engine.types import InputError

Found = TypeVar("Found")


class KeptSteps(Schema):
    """What the file holds: what was asked, and figures by step."""

    asked: dict[str, Any]
    found: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class BenchSteps:
    """Runs steps one after another. Made by `keep_steps`; one made by itself keeps and tells nothing.

    Attributes:
        path: where figures are kept.
        asked: what must be the same for them to hold.
        found: figures by step, JSON all of them.
        ends_s: when no more is begun that may be left out, on `perf_counter`'s clock.
        advance: told of every step.
    """

    path: Path | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    ends_s: float = float("inf")
    advance: Advance = lambda count: None

    def run(self, name: str, measure: Callable[[], Found]) -> Found:
        """A step's figures: kept ones, or those that are measured now."""
        if name not in self.found:
            # As JSON gives them back, whether they were kept or not.
            self.found[name] = json.loads(json.dumps(measure()))
            self._write()
        self.advance(1)
        found: Found = self.found[name]
        return found

    def has_time(self, name: str) -> bool:
        """Whether a step that may be left out is still to be run."""
        if name in self.found or perf_counter() < self.ends_s:
            return True
        self.advance(1)
        return False

    def _write(self) -> None:
        if self.path is not None:
            text = json.dumps({"asked": self.asked, "found": self.found}, indent=1)
            write_text_atomically(self.path, text + "\n")


@contextmanager
def keep_steps(
    title: str, path: Path, asked: Mapping[str, Any], *, total: int, minutes: float | None = None
) -> Iterator[BenchSteps]:
    """Steps with a bar (or a line a minute) on stderr, whose figures are kept until the block ends well.

    Args:
        title: what the bar is called.
        path: where figures are kept meanwhile.
        asked: what decides them, plain JSON.
        total: how many steps there are.
        minutes: when steps are left out that may be.
    """
    found = _read_kept(path, asked)
    if found:
        print(f"{title}: {len(found)} step(s) are kept from a run that was interrupted ({path})", flush=True)
    ends_s = float("inf") if minutes is None else perf_counter() + 60 * minutes
    with progress_bar(title, total, shown=True) as advance:
        steps = BenchSteps(path=path, asked=asked, found=found, ends_s=ends_s, advance=advance)
        started = perf_counter()
        try:
            yield steps
        except BaseException:
            if steps.found:
                told = f"{title}: stopped after {human_time(perf_counter() - started)}"
                print(f"{told}; {len(steps.found)} step(s) are kept in {path}", file=sys.stderr, flush=True)
            raise
    path.unlink(missing_ok=True)


def _read_kept(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = read_json_object(path)
        check_schema(KeptSteps, content, str(path))
    except InputError as error:
        print(f"not used: {error}", file=sys.stderr)
        return {}
    return dict(content["found"]) if content["asked"] == json.loads(json.dumps(asked)) else {}
