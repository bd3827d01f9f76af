"""SIGINT and SIGTERM, once or twice, at random moments of real processes.

Independent check: what a shell and a file manager see, which is the exit status, stderr and the folder.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from strata.scripts.cli import main

from ...sample_questions import QUESTIONS, write_jsonl

PROGRAM = "import sys; from strata.scripts.start import main; sys.exit(main())"
BOTH = (signal.SIGINT, signal.SIGTERM)
FIRST_S, LAST_S = 0.0, {"score": 4.0, "train": 4.0, "pack": 4.0, "index": 3.0, "search": 1.5}
"""When signals come, after the first moment in which they are heard."""
NUM_STOPS = 6
RECORDS = {"score": "run.json", "train": "train.json"}


@pytest.fixture
def arguments(checkpoint, tmp_path) -> Callable[[str], list[str]]:
    """`arguments(command)` -> those of a run that takes some seconds and leaves `tmp_path / "out"`."""
    model, out = str(checkpoint("llama-gqa")), str(tmp_path / "out")
    rows = [row | {"id": f"{copy}-{row['id']}"} for copy in range(16) for row in QUESTIONS]
    asked = str(write_jsonl(tmp_path / "asked.jsonl", rows))
    corpus, index = tmp_path / "corpus.jsonl", tmp_path / "index"
    flags = {
        "score": ["--model", model, "--questions", asked, "--micro-batch-tokens", "8", "--devices", "cpu"],
        "train": ["--model", model, "--questions", asked, "--devices", "cpu", "--epochs", "200"],
        "pack": ["--model", model, "--format", "nf4", "--shard-gib", "0.00001"],
        "index": ["--corpus", str(corpus)],
        "search": ["--index", str(index), "--questions", asked],
    }

    def make(command: str) -> list[str]:
        if command == "index":
            write_pages(corpus, 60_000)
        if command == "search":
            assert main(["index", "--corpus", str(write_pages(corpus, 200)), "--out", str(index)]) == 0
        return [command, *flags[command], "--out", f"{out}.csv" if command == "search" else out]

    return make


def write_pages(path: Path, count: int) -> Path:
    pages = (f'{{"id": "{page}", "text": "Page {page} of {page * page}."}}\n' for page in range(count))
    path.write_text("".join(pages), encoding="utf-8")
    return path


def hears(process: subprocess.Popen, number: int) -> bool:
    """Whether the process has a handler for a signal, as Linux says it."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def stop_at(arguments: list[str], after_s: float, numbers: Sequence[int]) -> tuple[int, list[str]]:
    """Exit status and lines on stderr of a process that is sent signals, one right after the other."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not hears(process, signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(after_s)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.02)
    _, printed = process.communicate(timeout=120)
    return process.returncode, printed.splitlines()


def assert_clean_stop(
    command: str, ended: tuple[int, list[str]], numbers: Sequence[int], folder: Path
) -> None:
    """One line and 128 + a signal's number; or the run was faster, and is whole.

    Python handles signals in the order of their numbers where several come during one call of C.
    """
    status, lines = ended
    assert status in (0, *(128 + number for number in numbers)), lines
    if status:
        (line,) = (line for line in lines if not line.startswith("warning: "))
        assert line.startswith("strata: interrupted")
    record = folder / "out" / RECORDS.get(command, "none")
    if record.is_file():
        found = json.loads(record.read_text(encoding="utf-8"))["status"]
        assert found == "done" if status == 0 else found in ("interrupted", "done")
    leftovers = [path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".lock", ".old")]
    assert [name for name in leftovers if not name.startswith(".tantivy-")] == []


CASES = [(command, 1 + index % 2) for index, command in enumerate(LAST_S)]
"""Every command once, one signal and two by turns; the slow test stops each at many moments."""


@pytest.mark.parametrize(("command", "times"), CASES)
def test_a_stop_at_some_moment_is_clean(command, times, arguments, tmp_path):
    moment = random.Random(f"{command} {times}")
    numbers = moment.sample(BOTH, times)
    ended = stop_at(arguments(command), moment.uniform(FIRST_S, LAST_S[command]), numbers)
    assert_clean_stop(command, ended, numbers, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", LAST_S)
def test_stops_at_many_moments_are_clean(command, arguments, tmp_path):
    moments = random.Random(command)
    given = arguments(command)
    for _ in range(NUM_STOPS):
        numbers = moments.choices(BOTH, k=moments.randint(1, 4))
        ended = stop_at(given, moments.uniform(FIRST_S, LAST_S[command]), numbers)
        assert_clean_stop(command, ended, numbers, tmp_path)
