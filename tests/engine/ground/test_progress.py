"""Progress on stderr: nothing for a library, a line a minute where nobody looks at a terminal."""

from __future__ import annotations

import pytest

from strata.engine import progress
from strata.engine.progress import human_time, progress_bar


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "perf_counter", lambda: now[0])
    return now


def test_a_line_a_minute(clock, capsys):
    with progress_bar("sweep", 400, shown=True) as advance:
        for step in range(1, 11):
            clock[0] = 25.0 * step
            advance(20)
    assert capsys.readouterr().err.splitlines() == [
        "sweep: 15%, 1 min 15 s gone, 12.00% a minute, about 7 min 05 s left",
        "sweep: 30%, 2 min 30 s gone, 12.00% a minute, about 5 min 50 s left",
        "sweep: 45%, 3 min 45 s gone, 12.00% a minute, about 4 min 35 s left",
    ]


def test_nothing_is_said_of_a_short_job_or_by_a_library(clock, capsys):
    for shown, seconds in ((True, 59.0), (False, 1000.0)):
        with progress_bar("sweep", 2, shown=shown) as advance:
            clock[0] += seconds
            advance(1)
    assert capsys.readouterr() == ("", "")


def test_one_bar_at_a_time(clock, capsys):
    with progress_bar("bench", 2, shown=True) as outer:
        with progress_bar("sweep", 2, shown=True) as inner:
            clock[0] = 100.0
            inner(1)
        outer(1)
    with progress_bar("next", 2, shown=True) as advance:
        clock[0] = 200.0
        advance(1)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["bench", "next"]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, "0.0 s"),
        (0.012, "12 ms"),
        (0.0001, "0.1 ms"),
        (0.42, "0.4 s"),
        (52.4, "52 s"),
        (432, "7 min 12 s"),
        (11100, "3 h 05 min"),
    ],
)
def test_durations_are_as_people_say_them(seconds, told):
    assert human_time(seconds) == told


def test_a_note_stands_beside_the_share(clock, capsys):
    with progress_bar("training", 4, shown=True, note=lambda: "loss 0.5000") as advance:
        clock[0] = 60.0
        advance(1)
    told = "training: 25%, loss 0.5000, 1 min 00 s gone, 25.00% a minute, about 3 min 00 s left\n"
    assert capsys.readouterr().err == told


def test_a_terminal_shows_a_bar_with_its_note_and_labelled_times(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("training", 4, shown=True, note=lambda: "loss [0.5]") as advance:
        advance(1)
    told = capsys.readouterr().err
    for words in ("training", "25%", "loss [0.5]", "gone,", "left"):
        assert words in told
