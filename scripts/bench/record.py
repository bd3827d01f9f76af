"""What a bench leaves: environment line, the figures of its parts, tables, a JSON line. Knows no bench."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from strata.engine.results.machine_facts import cpu_name, num_usable_cores

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config")

CHANGING_PRODUCTS = ("ATEN_CPU_CAPABILITY", "KMP_", "MKL_", "OMP_", "ONEDNN_")
"""How variables begin by which libraries choose instructions and threads: with one it is another machine."""
PACKAGES = ("strata-score", "torch", "transformers", "safetensors", "numpy")
GIB = 2**30
RESULTS = Path(__file__).parent / "results"
"""Where benches append what they measured, one JSON object a run."""


def environment_line() -> str:
    """Where a figure comes from, in one line: CPU, cores, RAM, GPUs, torch, transformers, commit, date."""
    machine, versions = _machine(), _versions()
    parts = [
        machine["cpu"],
        f"{machine['num_cores']} cores",
        f"{machine['ram_gib']} GiB RAM",
        *machine["gpus"],
        f"torch {versions['torch']}",
        f"transformers {versions['transformers']}",
        f"commit {_commit()}",
        _now()[:10],
    ]
    return ", ".join(parts)


def print_environment() -> None:
    """Prints where the figures come from: a bench's first line."""
    print(environment_line(), flush=True)


def run_parts(
    parts: Mapping[str, Callable[[Config], Mapping[str, Any]]], chosen: Sequence[str], config: Config
) -> dict[str, Any]:
    """Runs parts of a bench one after another, each under its name, and gathers their figures.

    Args:
        parts: Functions of the settings that print what they find and return figures, by name.
        chosen: The names to run, in order.
        config: The bench's settings.
    """
    figures: dict[str, Any] = {}
    for name in chosen:
        print(f"-- {name}", flush=True)
        figures |= parts[name](config)
    return figures


def asked_settings(config: DataclassInstance) -> dict[str, Any]:
    """A bench's settings as its result records them: without this machine's folders."""
    return {name: setting for name, setting in asdict(config).items() if not isinstance(setting, Path)}


def run_identity(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for figures of an interrupted run to be gone on with.

    Args:
        asked: the bench's settings, plain JSON.
    """
    return {"config": dict(asked), "machine": _machine(), "versions": _versions(), "commit": _commit()}


def append_result(bench: str, result: Mapping[str, Any], results_dir: Path) -> None:
    """Appends one JSON object to `<results_dir>/<bench>.jsonl` and prints it as a bench's last line.

    Args:
        bench: The bench's name.
        result: Its figures, and what it was asked to do under `config`. Numbers must be finite; NumPy scalars
            are fine. Nothing that names this machine's folders: the file is committed.
        results_dir: Made when missing.

    Raises:
        ValueError: `config` is missing, a key is one that is added here, or a number is not finite.
    """
    added = {
        "bench": bench,
        "date": _now(),
        "commit": _commit(),
        "machine": _machine(),
        "versions": _versions(),
    }
    if "config" not in result:
        raise ValueError(
            f"result of bench {bench!r} has no 'config': expected what the bench was asked to do"
        )
    taken = sorted(set(added) & set(result))
    if taken:
        raise ValueError(
            f"result of bench {bench!r} holds {taken}: these keys are filled in by append_result"
        )
    line = json.dumps({**added, **result}, allow_nan=False, default=_plain_number)
    results_dir.mkdir(parents=True, exist_ok=True)
    with (results_dir / f"{bench}.jsonl").open("a", encoding="ascii") as file:
        file.write(line + "\n")
    print(line, flush=True)


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows that share their keys as a table on stdout; the keys are its header."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ASCII)
    for key, value in rows[0].items():
        table.add_column(Text(key), justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain_number(value: Any) -> int | float | bool:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _machine() -> dict[str, Any]:
    machine = {
        "cpu": cpu_name() or platform.machine(),
        "num_cores": num_usable_cores(),
        "ram_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpus": _gpu_names(),
    }
    variables = {
        name: value for name, value in sorted(os.environ.items()) if name.startswith(CHANGING_PRODUCTS)
    }
    return machine | ({"variables": variables} if variables else {})


def _gpu_names() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"  # a checkout on the path
    return versions


def _commit() -> str:
    """The checkout's short commit, with `+changes` when files other than results differ, or `unknown`."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    changed = _git("status", "--porcelain", "--", ":/", ":(top,exclude)scripts/bench/results")
    return head + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
