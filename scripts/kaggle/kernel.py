"""On a kernel: makes of the user's pipeline one for this machine, and runs it into the working folder.

Flow: its settings and the pipeline file beside them -> paths where Kaggle has mounted them -> float16 where
cards are too old for bfloat16, a cache on the scratch disk, what is left of the deadline -> `strata run`. The
notebook calls it in a process of its own, so that whatever happens here, the notebook goes on.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict

from strata.engine.deadline import parse_duration_s
from strata.engine.files import write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.types import InputError
from strata.engine.yaml_files import read_yaml
from strata.scripts.kaggle.cells import Places, kernel_places
from strata.scripts.kaggle.mounts import Mounts
from strata.scripts.kaggle.paths import change_paths

SETTINGS = "strata-kernel.json"
"""The name of the settings, beside the wheels."""
SMALLEST_CACHE_BYTES = 4 << 30
OLDEST_BFLOAT16 = 8.0
"""The compute capability from which on bfloat16 is computed and not emulated."""
RERUN = "KAGGLE_IS_COMPETITION_RERUN"
"""Kaggle sets it where the hidden questions are there, and not on the run with the public stub."""


class KernelFile(Schema):
    """The settings of a kernel; see `KaggleSettings`."""

    model_config = ConfigDict(extra="forbid")

    pipeline: str
    questions: str
    deadline: str
    commit_deadline: str
    is_competition: bool


@dataclass(frozen=True, kw_only=True)
class Card:
    """A CUDA device: its compute capability, and why torch cannot use it, if so."""

    capability: float
    trouble: str | None


def run_kernel(settings: Path, started_s: float) -> int:
    """Becomes the `strata run` of a kernel; returns the exit status where there is nothing to be run.

    Args:
        settings: the kernel's.
        started_s: when the notebook began, on the clock of `time.time`.
    """
    try:
        file, questions = prepare(settings, started_s, kernel_places(), list_cards())
    except InputError as error:
        print(f"strata: {error}", file=sys.stderr)
        return 2
    sys.stdout.flush()
    flags = ["--questions", str(questions), "--out", str(kernel_places().working), "--overwrite"]
    # The same process, so that whoever stops this one stops the run.
    os.execv(sys.executable, [sys.executable, "-m", "strata.scripts.start", "run", str(file), *flags])


def prepare(settings: Path, started_s: float, places: Places, cards: list[Card]) -> tuple[Path, Path]:
    """Leaves the pipeline for this machine in the working folder.

    Args:
        settings: the kernel's.
        started_s: when the notebook began, on the clock of `time.time`.
        places: of the kernel.
        cards: of the machine.

    Returns:
        The pipeline file, and the question file.

    Raises:
        InputError: a file is not what it should be, or something is not mounted.
    """
    asked = check_schema(KernelFile, read_json_object(settings), str(settings))
    mounts = Mounts(places.input)
    values = read_yaml(mounts.find(asked.pipeline)).values
    values = change_paths(values, lambda name: str(mounts.find(name)))
    values = fit_to_cards(values, cards)
    values = place_cache(values, places)
    values["deadline"] = f"{allowed_s(asked, values.get('deadline'), started_s):.0f}s"
    file = places.working / "strata-pipeline.yaml"
    write_text_atomically(file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return file, mounts.find(asked.questions)


def allowed_s(asked: KernelFile, given: Any, started_s: float) -> float:
    """Seconds that the pipeline may take: what its own deadline or the kernel's leaves, at least one."""
    deadlines = [asked.deadline, *([str(given)] if given is not None else [])]
    if asked.is_competition and not os.environ.get(RERUN):
        print(f"strata: the public stub: {asked.commit_deadline} at most, the rest is guessed")
        deadlines.append(asked.commit_deadline)
    shortest = min(parse_duration_s("deadline", text) for text in deadlines)
    return max(1.0, shortest - (time.time() - started_s))


def fit_to_cards(values: dict[str, Any], cards: list[Card]) -> dict[str, Any]:
    """float16 where a card emulates bfloat16; the CPU where torch can use no card."""
    values = copy.deepcopy(values)
    shared = values.setdefault("machine", {})
    troubles = [card.trouble for card in cards if card.trouble]
    if troubles:
        print(f"strata: RUNNING ON THE CPU: {troubles[0]}")
        shared["devices"] = "cpu"
    elif cards and min(card.capability for card in cards) < OLDEST_BFLOAT16:
        sections = [shared, *(member.get("machine") or {} for member in values["members"].values())]
        for section in sections:
            if section.get("dtype", "auto" if section is shared else None) in ("auto", "bfloat16"):
                section["dtype"] = "float16"
    return values


def place_cache(values: dict[str, Any], places: Places) -> dict[str, Any]:
    """What is read from the mounts is kept on the faster scratch disk: written once, never deleted."""
    shared = values.setdefault("machine", {})
    if "cache_dir" not in shared and shutil.disk_usage(places.scratch).free >= SMALLEST_CACHE_BYTES:
        shared["cache_dir"] = str(places.scratch / "strata-cache")
    return values


def list_cards() -> list[Card]:
    """The CUDA devices of this machine."""
    from strata.scripts.doctor.devices import list_devices

    return [Card(capability=float(one.capability), trouble=one.trouble) for one in list_devices()]


def main() -> int:
    """Runs a kernel: `python -m strata.scripts.kaggle.kernel SETTINGS STARTED`."""
    settings, started_s = sys.argv[1:]
    return run_kernel(Path(settings), float(started_s))


if __name__ == "__main__":
    sys.exit(main())
