"""What the cells of a Kaggle notebook do, by the standard library alone: the notebook has this file's text.

The first cell runs before anything is installed, and a cell that raises makes Kaggle throw the submission
away; so every step tells what went wrong instead, and submission.csv is whole from the first second on.
"""

from __future__ import annotations

import csv
import html
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_ENTRIES = 200_000
"""Of the mounts, that are looked at; shallow ones come first."""
NUM_SHOWN = 6
GRACE_S = 120.0
"""Between asking a run to stop and ending it."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of a kernel.

    Attributes:
        input: mounts of data sets, models and competitions; read-only and slow.
        working: 20 GB, of which deleting frees room; what is left here is the kernel's output.
        scratch: larger, but copy-on-write: what is deleted there is never freed, so it is written once.
    """

    input: Path
    working: Path
    scratch: Path


def kernel_places() -> Places:
    """The folders of a kernel; STRATA_KAGGLE_INPUT, _WORKING and _SCRATCH name others, for trying it out."""
    return Places(
        input=Path(os.environ.get("STRATA_KAGGLE_INPUT", "/kaggle/input")),
        working=Path(os.environ.get("STRATA_KAGGLE_WORKING", "/kaggle/working")),
        scratch=Path(os.environ.get("STRATA_KAGGLE_SCRATCH", "/tmp")),
    )


def find_places() -> Places | None:
    """The folders of a kernel; None where this is none."""
    places = kernel_places()
    return places if places.input.is_dir() and places.working.is_dir() else None


def walk_mounts(root: Path) -> Iterator[Path]:
    """Files and folders below a folder, the shallow ones first."""
    waiting, num_seen = deque([root]), 0
    while waiting:
        folder = waiting.popleft()
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue
        for path in entries:
            num_seen += 1
            if num_seen > MAX_ENTRIES:
                return
            yield path
            if path.is_dir() and not path.is_symlink():
                waiting.append(path)


def find_mounted(places: Places, name: str) -> Path | None:
    """The shallowest file whose path ends with a name; None where there is none."""
    end = Path("/", name).parts[1:]
    return next((path for path in walk_mounts(places.input) if path.parts[-len(end) :] == end), None)


def leave_first_answer(places: Places, questions: str) -> str:
    """Leaves a whole submission.csv, before anything can fail; returns one line on what it holds.

    Args:
        places: of the kernel.
        questions: the name of the question file.
    """
    try:
        sample, asked = find_mounted(places, "sample_submission.csv"), find_mounted(places, questions)
        rows, told = first_answer(sample, asked)
    except (OSError, csv.Error, LookupError, ValueError) as error:
        return f"NO FIRST ANSWER: {error}"
    _write_rows(places.working / "submission.csv", rows)
    shutil.copy(places.working / "submission.csv", places.scratch / "strata-first-submission.csv")
    return f"submission.csv: {len(rows) - 1} rows, {told}"


def first_answer(sample: Path | None, asked: Path | None) -> tuple[list[list[str]], str]:
    """Rows of a submission that needs no model, its header first, and what they hold.

    Args:
        sample: the competition's sample submission.
        asked: the question file.

    Raises:
        ValueError: neither tells which questions there are.
    """
    sample_rows = _read_rows(sample) if sample else []
    question_rows = _read_rows(asked) if asked and asked.suffix == ".csv" else []
    header = question_rows[0] if question_rows else []
    if "id" not in header:
        if not sample_rows:
            raise ValueError("there is neither a sample_submission.csv nor a CSV of questions with an id")
        return sample_rows, "the sample submission's"
    ids = [row[header.index("id")] for row in question_rows[1:]]
    if [row[0] for row in sample_rows[1:]] == ids:
        return sample_rows, "the sample submission's"
    letters = [name for name in header if len(name) == 1 and name.isupper()][:3]
    guess = " ".join(letters) or "A B C"
    return [["id", "prediction"], *([name, guess] for name in ids)], f"{guess} for every question"


def install(places: Places, uninstall: Sequence[str] = ()) -> bool:
    """Installs the wheels of the mounted wheelhouse, and nothing else, without a network.

    Args:
        places: of the kernel.
        uninstall: packages that have to go first.

    Returns:
        Whether that worked.
    """
    found = (path for path in walk_mounts(places.input) if path.match("strata_score-*.whl"))
    wheel = next(found, None)
    if wheel is None:
        print(f"NOTHING INSTALLED: no strata_score-*.whl below {places.input}; is its data set attached?")
        return False
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    if uninstall:
        follow([*pip, "uninstall", "--yes", "--quiet", *uninstall])
    # Without dependencies: what the image has stays as it is.
    wheels = [str(path) for path in sorted(wheel.parent.glob("*.whl"))]
    status = follow([*pip, "install", "--quiet", "--no-index", "--no-deps", *wheels])
    print(f"{len(wheels)} wheel(s) of {wheel.parent}" if status == 0 else f"PIP FAILED WITH STATUS {status}")
    return status == 0


def follow(command: Sequence[str], timeout_s: float | None = None) -> int:
    """Runs a command, prints what it prints, and returns its exit status.

    Args:
        command: with its arguments.
        timeout_s: when it is asked to stop (SIGTERM), and some time later ended.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    timers = []
    if timeout_s is not None:
        actions = ((timeout_s, process.terminate), (timeout_s + GRACE_S, process.kill))
        timers = [threading.Timer(after_s, stop) for after_s, stop in actions]
    for timer in timers:
        timer.daemon = True
        timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
    status = process.wait()
    for timer in timers:
        timer.cancel()
    return status


def strata(module: str, *arguments: str, timeout_s: float | None = None) -> int:
    """Runs a module of strata in a process of its own; see `follow`."""
    return follow([sys.executable, "-m", f"strata.scripts.{module}", *arguments], timeout_s)


def run(places: Places, started_s: float, timeout_s: float, settings: str) -> int:
    """Runs the pipeline; whatever becomes of it, a whole submission.csv is left.

    Args:
        places: of the kernel.
        started_s: when the notebook began, on the clock of `time.time`.
        timeout_s: of the whole notebook.
        settings: the name of the file beside the wheels that says what to run.
    """
    found, status = find_mounted(places, settings), 1
    if found is None:
        print(f"NOTHING RUN: no {settings} below {places.input}")
    else:
        left_s = max(1.0, timeout_s - (time.time() - started_s))
        status = strata("kaggle.kernel", str(found), str(started_s), timeout_s=left_s)
    submission, first = places.working / "submission.csv", places.scratch / "strata-first-submission.csv"
    if not submission.is_file() and first.is_file():
        shutil.copy(first, submission)
        print("SUBMISSION.CSV IS THE FIRST ANSWER, WHICH NO MODEL HAS SEEN")
    if status != 0:
        print("*" * 80)
        print(
            f"THE RUN ENDED WITH STATUS {status}. submission.csv is whole, but some or all of it is guessed."
        )
        print("*" * 80)
    return status


def head(places: Places) -> str:
    """The first lines of the submission."""
    submission = places.working / "submission.csv"
    if not submission.is_file():
        return "NO SUBMISSION.CSV"
    lines = submission.read_text(encoding="utf-8").splitlines()
    return "\n".join([*lines[:NUM_SHOWN], f"({len(lines) - 1} rows)"])


def report_html(places: Places) -> str:
    """The report, to be shown inside a page; one line where there is none."""
    report = places.working / "report.html"
    if not report.is_file():
        return "<p>no report.html: the run did not end</p>"
    page = html.escape(report.read_text(encoding="utf-8"), quote=True)
    return f'<iframe srcdoc="{page}" width="100%" height="900" style="border:0"></iframe>'


def _read_rows(path: Path) -> list[list[str]]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row for row in csv.reader(file) if row]


def _write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Writes a CSV file that is whole or absent."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    os.replace(partial, path)
