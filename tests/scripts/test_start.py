"""The program `strata` on a terminal: it says something before it loads anything."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

SAY_FIRST = """
import sys
from strata.scripts import start

def run(command, *, until_exit):
    heavy = {"torch", "transformers", "tyro", "rich", "strata.scripts.cli"} & set(sys.modules)
    print("loaded", *sorted(heavy), file=sys.stderr, flush=True)
    return 0

start.run_stoppable = run
sys.argv = ["strata", *sys.argv[1:]]
start.main()
"""


def lines_on_a_terminal(*arguments: str) -> list[str]:
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", SAY_FIRST, *arguments], stderr=theirs) as process:
        os.close(theirs)
        told = b""
        while chunk := _read(ours):
            told += chunk
        process.wait(timeout=60)
    os.close(ours)
    return told.decode().split("\r\n")[:-1]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""  # Linux says so when the other end is closed


def test_the_first_line_comes_before_anything_is_loaded():
    first, second = lines_on_a_terminal("score", "--model", "m")
    assert first == "strata score: loading libraries and files ..."
    assert second == "loaded"


@pytest.mark.parametrize("arguments", [["--version"], ["score", "--help"], []])
def test_what_is_quick_says_nothing_before(arguments):
    assert lines_on_a_terminal(*arguments) == ["loaded"]


def test_nothing_is_said_where_nobody_looks():
    done = subprocess.run(
        [sys.executable, "-c", SAY_FIRST, "score"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "loaded\n"
