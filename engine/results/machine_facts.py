"""What one has to know of machine, versions and command to repeat a run."""

from __future__ import annotations

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
