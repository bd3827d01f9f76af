"""How far a long piece of work is: a bar on a terminal, a line a minute where stderr is none."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

LINE_EVERY_S = 60.0
BAR_CELLS = 20
"""Narrow enough for a note beside it in 100 columns."""

_TELLING = threading.Lock()
"""Held by the one that tells: two bars at a time would overwrite each other."""

Advance = Callable[[int], None]
"""Told how much has been done since the last call; may be called from any thread."""


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool, note: Callable[[], str] = str) -> Iterator[Advance]:
    """Yields a function that is told of progress; inside of another one's block, it is told to nobody.

    Args:
        title: what is done.
        total: how much of it there is.
        shown: tell on stderr; a library does not.
        note: asked for a few words to show beside the share, after every advance.
    """
    if not shown or not _TELLING.acquire(blocking=False):
        yield lambda count: None
        return
    try:
        if sys.stderr.isatty():
            with _bar(title, total, note) as advance:
                yield advance
        else:
            yield _Lines(title=title, total=total, note=note).advance
    finally:
        _TELLING.release()


def human_time(seconds: float) -> str:
    """A duration as people say it: 12 ms, 0.4 s, 52 s, 7 min 12 s, 3 h 05 min."""
    if 0 < seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


@contextmanager
def _bar(title: str, total: int, note: Callable[[], str]) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    said = TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=BAR_CELLS),
        TextColumn("{task.percentage:>3.0f}%"),
        *([] if note is str else [said]),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    lock = threading.Lock()
    console = Console(stderr=True)
    # What is printed goes above the bar; into a file or a pipe it goes as ever.
    on_screen = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=on_screen) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(count: int) -> None:
            with lock:
                progress.update(task, advance=count, note=note())

        yield advance


@dataclass(kw_only=True, eq=False)
class _Lines:
    """Prints share, rate, time gone and time left once a minute."""

    title: str
    total: int
    note: Callable[[], str] = str
    _done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._started = self._told = perf_counter()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = perf_counter()
            if now - self._told < LINE_EVERY_S or not self._done:
                return
            self._told, gone_s = now, now - self._started
        share = min(1.0, self._done / self.total)
        left_s = gone_s * (1 - share) / share
        told = (
            f"{self.title}: {share:.0%}",
            self.note(),
            f"{human_time(gone_s)} gone",
            f"{60 * share / gone_s:.2%} a minute",
            f"about {human_time(left_s)} left",
        )
        print(
            ", ".join(filter(None, told)),
            file=sys.stderr,
            flush=True,
        )
