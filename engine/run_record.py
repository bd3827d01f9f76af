"""run.json: what was run, on which machine, what was planned, what was measured, and how it ended.

Knows nothing of the content of plan, measured and metrics; it only makes sure that they reach the disk as
valid JSON also when the run fails.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from enum import Enum
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import TracebackType

import psutil

from strata.engine.results import OutputError, write_atomically
from strata.engine.types import InputError, RunWarnings

log = logging.getLogger(__name__)

SUBPROCESS_TIMEOUT_S = 10


class RunRecord:
    """Context manager around a run that leaves run.json however the block ends.

    Until `begin()` is called the run is still checking its input: an InputError then leaves no file and no
    folder. From `begin()` on run.json exists, first with status "running", at the end with "done", "failed"
    or "interrupted". The exception, if any, always propagates.

    Attributes:
        plan: What the planner decided.
        measured: What the run found.
        metrics: Metrics over the questions with an answer, None when there are none.
        warnings: Odd rows and messages; the same object that the stages write to.
    """

    def __init__(self, path: Path, config: Mapping[str, object], warnings: RunWarnings | None = None) -> None:
        """Remember where run.json goes and how the run is configured; touches no file.

        Args:
            path: The run.json to leave; its folder is made when needed.
            config: The resolved configuration.
            warnings: Where the run collects its warnings; a new one when None.
        """
        self.path = path
        self.config = config
        self.warnings = RunWarnings() if warnings is None else warnings
        self.plan: dict[str, object] = {}
        self.measured: dict[str, object] = {}
        self.metrics: dict[str, object] | None = None
        self.status = "running"
        self.error: dict[str, str] | None = None
        self._has_begun = False

    def __enter__(self) -> RunRecord:
        return self

    @cached_property
    def run_info(self) -> dict:
        """What `collect_run_info` says, asked once, no earlier than `begin()` needs it."""
        return collect_run_info(self.config)

    def begin(self) -> None:
        """Say that the input is good: make the folder and write run.json with status "running".

        Raises:
            OutputError: If run.json cannot be written.
        """
        self._has_begun = True
        self._write()

    def as_dict(self) -> dict:
        """What run.json holds at this moment, made of plain JSON types only."""
        rows = {kind: {"count": len(ids), "ids": ids} for kind, ids in self.warnings.rows.items()}
        record = {
            "status": self.status,
            "error": self.error,
            "run_info": self.run_info,
            "plan": self.plan,
            "measured": self.measured,
            "metrics": self.metrics,
            "warnings": {"rows": rows, "messages": self.warnings.messages},
        }
        return {key: to_json(value) for key, value in record.items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.status = "done"
            self._write()
            return
        if isinstance(error, InputError) and not self._has_begun:
            return
        self.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.error = {"type": type(error).__name__, "message": " ".join(str(error).split())}
        self._write_beside_an_error()

    def _write_beside_an_error(self) -> None:
        # The error of the run matters more than that of the record (both fail when the disk is full).
        try:
            self._write()
        except OutputError as output_error:
            log.warning("%s", output_error)

    def _write(self) -> None:
        text = json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"

        def write(temporary: Path) -> None:
            temporary.write_text(text, encoding="ascii")

        write_atomically(self.path, write)


def to_json(value: object) -> object:
    """The value as plain JSON types: what has no JSON form, such as a Path or a dtype, becomes its text.

    NaN and infinities become None; dataclasses and mappings dicts with text keys; sets sorted lists; NumPy
    and torch scalars and arrays numbers and lists.
    """
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return to_json(value.value)
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((to_json(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return str(value)


def collect_run_info(config: Mapping[str, object]) -> dict:
    """What one has to know to repeat a run. Reads no environment variable and loads no library.

    Args:
        config: The resolved configuration; paths become text.

    Returns:
        Plain JSON types: versions, commit, machine, command and config; null where something cannot be found
        out.
    """
    commit = read_git("rev-parse", "HEAD")
    changes = read_git("status", "--porcelain", "--untracked-files=all", "--", "*.py")
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "strata": package_version("strata-score"),
        "commit": commit,
        "uncommitted_changes": None if commit is None or changes is None else changes != "",
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "transformers": package_version("transformers"),
        "machine": describe_machine(),
        "command": shlex.join(sys.argv),
        "config": to_json(config),
    }


def describe_machine() -> dict:
    """CPU, cores (in the machine and usable by this process), RAM, NVIDIA GPUs, platform."""
    return {
        "cpu": cpu_model(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 2),
        "gpus": list_gpus(),
        "platform": platform.platform(),
    }


def cpu_model() -> str | None:
    """The processor's name as /proc/cpuinfo gives it, elsewhere as Python knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def list_gpus() -> list[dict] | None:
    """Name and memory of every NVIDIA GPU; [] without nvidia-smi, None when it fails.

    Asks nvidia-smi, not torch, which would make a CUDA context on each GPU.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    output = read_command(
        "nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"
    )
    return None if output is None else [parse_gpu(line) for line in output.splitlines() if line.strip()]


def parse_gpu(line: str) -> dict:
    """One line of nvidia-smi, `name, MiB, driver`; memory is None where the driver does not tell it."""
    name, memory_mib, driver = (part.strip() for part in line.rsplit(",", 2))
    memory_gib = round(int(memory_mib) / 1024, 2) if memory_mib.isdigit() else None
    return {"name": name, "memory_gib": memory_gib, "driver": driver}


def package_version(distribution: str) -> str | None:
    """The installed version, without importing the package; None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def read_git(*arguments: str) -> str | None:
    """What git says of the checkout that this file lies in; None outside of one or without git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    return read_command("git", "--no-optional-locks", "-C", str(root), *arguments)


def read_command(*command: str) -> str | None:
    """What a command prints, stripped; None (and a line in the log) when it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=SUBPROCESS_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s gave nothing: %s", command[0], error)
        return None
    return done.stdout.strip()
