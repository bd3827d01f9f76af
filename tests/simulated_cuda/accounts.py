"""What a simulated machine counts: races, host waits, kernels, bytes. Knows no tensors."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .clocks import LOCK

ROOT = Path(__file__).resolve().parents[2]
OURS = ("engine", "kernels", "training", "retrieval", "scripts")


@functools.cache
def _name_of(filename: str) -> str | None:
    """A file of ours relative to the repository; None for any other."""
    path = Path(os.path.realpath(filename))
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
    return name if name.split("/")[0] in OURS else None


def place() -> str:
    """The innermost line of the project that is being executed; "?" for none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = _name_of(frame.f_code.co_filename)
        if name is not None:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@dataclass(frozen=True)
class Race:
    """Two accesses of the same bytes, one a write, of which neither happened before the other."""

    kind: str
    first: str
    second: str
    allocated_at: str


@dataclass(frozen=True)
class Occasion:
    """Something that was counted: what, at which line of the project, in which thread."""

    what: str
    place: str
    thread: str


@dataclass
class Accounts:
    """Counts since the last reset.

    Attributes:
        races: how often each was seen.
        accesses: that were checked.
        waits: of the host for a device.
        kernels: that were launched.
        pageable_bytes: copied between a device and host memory that is not pinned.
        live_bytes: in use, by device ("cuda:0") or kind ("pinned", which counts what torch or CUDA really
            takes).
        peak_bytes: the most that was.
    """

    races: Counter[Race] = field(default_factory=Counter)
    accesses: int = 0
    waits: Counter[Occasion] = field(default_factory=Counter)
    kernels: Counter[Occasion] = field(default_factory=Counter)
    pageable_bytes: Counter[Occasion] = field(default_factory=Counter)
    live_bytes: Counter[str] = field(default_factory=Counter)
    peak_bytes: Counter[str] = field(default_factory=Counter)

    def reset(self) -> None:
        """Begins anew; what is in use stays in use."""
        for counter in (self.races, self.waits, self.kernels, self.pageable_bytes):
            counter.clear()
        self.accesses = 0
        self.peak_bytes = Counter(self.live_bytes)

    def count(self, counter: Counter[Occasion], what: str, amount: int = 1) -> None:
        """Counts something that happens here and now."""
        with LOCK:
            counter[Occasion(what, place(), threading.current_thread().name)] += amount

    def take(self, name: str, num_bytes: int) -> None:
        """Memory is taken."""
        with LOCK:
            self.live_bytes[name] += num_bytes
            self.peak_bytes[name] = max(self.peak_bytes[name], self.live_bytes[name])

    def give_back(self, name: str, num_bytes: int) -> None:
        """Memory is given back."""
        with LOCK:
            self.live_bytes[name] -= num_bytes

    def summary(self, top: int = 12) -> str:
        """A table for people."""
        lines = [f"races: {sum(self.races.values())} in {self.accesses} accesses"]
        lines += [f"  {count} x {race}" for race, count in self.races.most_common(top)]
        for name, counter in (("host waits", self.waits), ("kernels", self.kernels)):
            lines.append(f"{name}: {sum(counter.values())}")
            lines += [f"  {count} x {one.what} at {one.place}" for one, count in counter.most_common(top)]
        lines.append(f"peak bytes: {dict(self.peak_bytes)}")
        return "\n".join(lines)


ACCOUNTS = Accounts()
"""Those of the machine that this process simulates."""
