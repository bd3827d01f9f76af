"""Every reader of files from outside, given odd inputs: it returns or raises an InputError of one line.

Nothing else is allowed, nor ten seconds, nor a gibibyte. FUZZ_INPUTS says how many inputs each reader gets
(`make fuzz`: a million), FUZZ_FIRST the number of the first, and FUZZ_KEEP a folder for the inputs that break
one. What once broke a reader lies in `found` and is tried in every run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from strata.engine.types import InputError

from . import harness
from .harness import FuzzedReader, find_fault, keep_input, make_input
from .mutation import mutate_bytes
from .readers import READERS

FOUND = Path(__file__).parent / "found"
NUM_INPUTS = int(os.environ.get("FUZZ_INPUTS", "100"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
KEEP = os.environ.get("FUZZ_KEEP")
MAX_FAULTS = 20
MAX_FOUND_BYTES = 20_000

FUZZED = [pytest.param(reader, id=reader.name) for reader in READERS]


@pytest.mark.parametrize("reader", FUZZED)
def test_odd_inputs(
    reader: FuzzedReader, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("inputs", NUM_INPUTS)
    good = reader.prepare(tmp_path)
    faults: dict[str, int] = {}
    for number in range(FIRST, FIRST + NUM_INPUTS):
        content = make_input(reader, good, number)
        fault = find_fault(reader, tmp_path, content)
        if fault is not None and fault not in faults:
            faults[fault] = number
            if KEEP:
                keep_input(Path(KEEP), reader, content)
        if len(faults) == MAX_FAULTS:
            break
    assert faults == {}, f"fault: number of the first input of {reader.name} that shows it"


@pytest.mark.parametrize("reader", FUZZED)
def test_what_once_broke_a_reader(
    reader: FuzzedReader, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    reader.prepare(tmp_path)
    inputs = sorted((FOUND / reader.name).glob("*.bin"))
    record_property("inputs", len(inputs))
    assert [(path.name, find_fault(reader, tmp_path, path.read_bytes())) for path in inputs] == [
        (path.name, None) for path in inputs
    ]


@pytest.mark.parametrize("reader", FUZZED)
def test_the_good_input_is_read(reader: FuzzedReader, tmp_path: Path) -> None:
    """Else every odd one would be refused for the same reason, and nothing be tried."""
    (tmp_path / "work").mkdir()
    good = reader.prepare(tmp_path / "work")
    (tmp_path / "work" / reader.file).write_bytes(good)
    reader.read(tmp_path / "work")


def test_found_inputs_are_small_and_of_a_reader() -> None:
    names = {reader.name for reader in READERS}
    for path in FOUND.rglob("*.bin"):
        assert path.parent.name in names, path
        assert path.stat().st_size <= MAX_FOUND_BYTES, path


def reader_that(read: object) -> FuzzedReader:
    return FuzzedReader(name="x", file="x", prepare=lambda folder: b"good", mutate=mutate_bytes, read=read)


def test_the_harness_finds_what_it_is_for(tmp_path: Path) -> None:
    class RawError(InputError):
        """Says what it is told, whereas an InputError makes one line of it."""

        def __str__(self) -> str:
            return self.told

    def refuse(folder: Path, message: str) -> None:
        error = RawError(message)
        error.told = message
        raise error

    faults = [
        find_fault(reader_that(read), tmp_path, b"")
        for read in (
            lambda folder: {}["absent"],
            lambda folder: refuse(folder, "one\ntwo"),
            lambda folder: refuse(folder, "x" * 9_999),
            lambda folder: refuse(folder, "fine"),
            lambda folder: (folder / "x").read_bytes(),
        )
    ]
    assert faults == [
        "KeyError at no line of ours",
        "the message is not of one line",
        "the message is too long",
        None,
        None,
    ]


MEASURING = """
import sys
from pathlib import Path
import harness

def give_back(folder):
    return len(bytearray(b"x") * (256 << 20))

def allocate(folder):
    return len(bytearray(b"x") * ((harness.below_peak_kib() << 10) + (128 << 20)))

harness.MAX_GROWTH_KIB = 64 << 10
give_back(None)
for read in (allocate, lambda folder: None):
    reader = harness.FuzzedReader(name="x", file="x", prepare=None, mutate=None, read=read)
    print(harness.find_fault(reader, Path(sys.argv[1]), b""))
"""


def test_the_harness_finds_a_reader_that_takes_memory(tmp_path: Path) -> None:
    """In a process of its own: from a large one the system may take mapped pages back meanwhile, and the
    peak then hides as much of what is taken.
    """
    command = [sys.executable, "-c", MEASURING, str(tmp_path)]
    told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == ["takes more than a gibibyte", "None"]


def test_the_harness_ends_a_reader_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loop(folder: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(harness, "SECONDS", 1)
    assert find_fault(reader_that(loop), tmp_path, b"") == "takes more than 1 s"


def test_an_input_is_told_by_its_number() -> None:
    reader = reader_that(lambda folder: None)
    inputs = [make_input(reader, b"some good input", number) for number in range(200)]
    random.seed(1)
    assert [make_input(reader, b"some good input", number) for number in range(200)] == inputs
    assert len(set(inputs)) > 150
