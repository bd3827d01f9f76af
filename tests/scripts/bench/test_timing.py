"""How benches time: who runs when, and which of the seconds count. Sleeps tell them apart."""

from __future__ import annotations

import time

from strata.scripts.bench.timing import Stopwatch, least_seconds, median_seconds, time_in_turns


def test_runs_take_turns():
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = time_in_turns(runs, 3)
    assert order == ["a", "b"] * 3
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}


def test_a_stopwatch_counts_what_is_inside_it():
    with Stopwatch() as watch:
        time.sleep(0.02)
    assert watch.seconds >= 0.02


def test_the_first_call_does_not_count_for_the_least():
    pauses = iter((0.0, 0.03, 0.02, 0.03))
    assert least_seconds(lambda: time.sleep(next(pauses)), at_least_s=0.0) >= 0.02


def test_the_median_is_of_the_rounds():
    pauses = iter((0.0, 0.02, 0.02))
    assert median_seconds(lambda: time.sleep(next(pauses)), rounds=3) >= 0.02
