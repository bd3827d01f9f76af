"""How a bench times a run: a stopwatch, rounds in turns, the least or the median. Knows no bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIN_REPEATS = 3


class Stopwatch:
    """Context manager: `seconds` from entry to exit, waiting for the device's queued work at both ends."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.seconds = 0.0
        self._device = str(device)

    def __enter__(self) -> Stopwatch:
        self._wait()
        self._start = perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._wait()
        self.seconds = perf_counter() - self._start

    def _wait(self) -> None:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self._device)


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every run in every round; all take turns, so that a slow moment of the machine meets all.

    Args:
        runs: What to time, warmed up already.
        rounds: How often each is run.
        device: Whose queued work is waited for.
    """
    from strata.engine.progress import (
        progress_bar,
    )  # peers' runners use this module in interpreters of theirs

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with progress_bar("rounds", rounds * len(runs), shown=True) as advance:
        for _ in range(rounds):
            for name, run in runs.items():
                with Stopwatch(device) as watch:
                    run()
                seconds[name].append(watch.seconds)
                advance(1)
    return seconds


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, warmed up already, over the rounds."""
    return median(time_in_turns({"run": run}, rounds)["run"])


def least_seconds(
    run: Callable[[], object], device: torch.device | str = "cpu", at_least_s: float = 1.5
) -> float:
    """Least seconds of a call, after one that does not count; other programs only ever add to it.

    Args:
        run: What to time.
        device: Whose queued work is waited for.
        at_least_s: How long to repeat it, three times or more.
    """
    run()
    seconds: list[float] = []
    while len(seconds) < MIN_REPEATS or sum(seconds) < at_least_s:
        with Stopwatch(device) as watch:
            run()
        seconds.append(watch.seconds)
    return min(seconds)
