"""Counts what the tests of a checkout give readers: hostile files, one a test, and the fuzzers' odd inputs.

A hostile input that ends in anything but one line fails its test, and is counted as a traceback; one that
takes more than MAX_SECONDS is counted as a hang.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from strata.engine.types import InputError

ROOT = Path(__file__).resolve().parents[3]
MAX_SECONDS = 10
HOSTILE_TESTS = (
    "tests/hostile",
    "tests/engine/prompts/test_hostile_templates.py",
    "tests/engine/prompts/test_chat_templates.py",
    "tests/engine/questions/test_variants.py",
    "tests/engine/results/test_damaged_partial_scores.py",
    "tests/engine/ground/test_json_files.py",
    "tests/engine/weights/test_damaged_checkpoint.py",
    "tests/retrieval/corpus/test_hostile_corpora.py",
    "tests/retrieval/index/test_hostile_indexes.py",
    "tests/retrieval/index/test_hostile_journals.py",
)
READS_SOURCES = tuple(
    f"--deselect=tests/hostile/test_no_foreign_code.py::{name}"
    for name in ("test_no_text_is_run_as_python", "test_nothing_is_unpickled")
)
"""No hostile inputs: they read all of our own files."""
FUZZ_TESTS = ("tests/fuzz",)
HANG = ("Timeout", "takes more than", "time.perf_counter", "LONGEST_S")
"""What a failure says of an input that took too long."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A test: how many inputs it gave (0: not told), and how it failed, if it did."""

    name: str
    num_inputs: int
    failure: str | None


def count_hostile() -> dict[str, int]:
    """Runs the tests on hostile files."""
    settings = ("-o", f"timeout={MAX_SECONDS}", "-o", "timeout_func_only=true", *READS_SOURCES)
    outcomes = _run_tests(HOSTILE_TESTS, settings, {})
    return {"hostile_inputs": len(outcomes), **_count_failures("hostile", outcomes)}


def count_fuzz(num_inputs: int, first: int) -> dict[str, int]:
    """Runs the fuzzers with so many inputs a reader, from a number on, and on what they found before."""
    environment = {"FUZZ_INPUTS": str(num_inputs), "FUZZ_FIRST": str(first)}
    outcomes = _run_tests(FUZZ_TESTS, ("-o", "timeout=0"), environment)
    return {
        "fuzz_inputs": sum(outcome.num_inputs for outcome in outcomes),
        "fuzz_crashes": sum(outcome.failure is not None for outcome in outcomes),
    }


def read_outcomes(report: Path) -> list[Outcome]:
    """The tests of a JUnit report; those that were skipped are left out."""
    outcomes = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue
        told = {each.get("name"): each.get("value") for each in case.iter("property")}
        failures = [*case.findall("failure"), *case.findall("error")]
        texts = [f"{failure.get('message')} {failure.text}" for failure in failures]
        outcomes.append(
            Outcome(
                name=f"{case.get('classname')}::{case.get('name')}",
                num_inputs=int(told.get("inputs") or 0),
                failure=" ".join(texts) or None,
            )
        )
    return outcomes


def _count_failures(kind: str, outcomes: Sequence[Outcome]) -> dict[str, int]:
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    hangs = sum(any(sign in failure for sign in HANG) for failure in failures)
    return {f"{kind}_tracebacks": len(failures) - hangs, f"{kind}_hangs": hangs}


def _run_tests(paths: Sequence[str], settings: Sequence[str], environment: dict[str, str]) -> list[Outcome]:
    if not all((ROOT / path).exists() for path in paths):
        raise InputError(f"{ROOT}: no tests there; expected a checkout of the repository")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run(
            [*command, *settings, *paths],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        outcomes = read_outcomes(report)
    for outcome in outcomes:
        if outcome.failure is not None:
            print(f"{outcome.name}: {outcome.failure.splitlines()[0][:200]}", flush=True)
    return outcomes
