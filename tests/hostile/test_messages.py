"""What strangers wrote into files is quoted in messages: one line each, which no terminal obeys."""

from __future__ import annotations

import pytest

from strata.engine.types import MAX_LINE_CHARACTERS, InputError
from strata.scripts import cli

ESCAPES = "\x1b]0;title\x07\x1b[2J\r\u202egnp.exe\x00\ud800"


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ("a file: wrong", "a file: wrong"),
        ("wrong\n  in line 3\r\nof it\n", "wrong in line 3 of it"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("tab\there", r"tab\there"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\ud800", r"\ud800"),
        ("naïve 河", "naïve 河"),
    ],
)
def test_a_message_is_one_line_of_printable_characters(told: str, line: str) -> None:
    assert str(InputError(told)) == line


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    line = str(InputError(f"q.csv: column {'x' * 5_000} is there twice; expected once"))
    assert len(line) <= MAX_LINE_CHARACTERS
    assert line.startswith("q.csv: column xx")
    assert line.endswith("expected once")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left", f"out/{ESCAPES}"), MemoryError(f"{ESCAPES}\nx")]
)
def test_errors_of_the_system_are_told_so_too(error, monkeypatch, capsys) -> None:
    def fail(*given: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_parse", fail)
    assert cli.run_command(["score"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
