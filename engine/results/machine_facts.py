"""What one has to know of machine, versions and command to repeat a run. Knows no models, reads no results.

The owner of what the CPU is called, how many cores there are, and what Linux lists of them.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import psutil

from strata.engine.files import to_json


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
        "machine": collect_machine_facts(),
        "command": shlex.join(sys.argv),
        "config": to_json(config),
    }


def collect_machine_facts() -> dict:
    """CPU, cores (in the machine and usable by this process), RAM, NVIDIA GPUs, platform."""
    return {
        "cpu": cpu_name(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": num_usable_cores(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 2),
        "gpus": list_gpus(),
        "platform": platform.platform(),
    }


def cpu_name() -> str | None:
    """The processor's name as Linux lists it, elsewhere as Python knows it; None where neither does."""
    for line in read_cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def num_usable_cores() -> int | None:
    """Cores that this process may run on; those of the machine where the system does not tell."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def read_cpuinfo() -> str:
    """What Linux lists of every core, its name and its feature flags among it; empty elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""


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


@functools.cache
def package_version(distribution: str) -> str | None:
    """The installed version, without importing the package; None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def read_git(*arguments: str) -> str | None:
    """What git says of the checkout that this file lies in; None outside of one or without git."""
    root = Path(__file__).resolve().parents[2]
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


log = logging.getLogger(__name__)

SUBPROCESS_TIMEOUT_S = 10
