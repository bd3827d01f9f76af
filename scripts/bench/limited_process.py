"""A bench's child process: what it is asked, what it answers, and the memory limit around it. Knows no bench.

The parent calls `run_limited` on a module of ours, whose last lines call `answer_parent`. Where a memory
cgroup can be made (root, Linux), the child lives in one of the limit's size, page cache included, so that
exceeding it would end it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from strata.engine.types import InputError
from strata.scripts.bench.record import GIB, asked_settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)

CGROUP_ROOTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
"""Version 1, where the memory controller has a separate tree, then version 2."""


def run_limited(module: str, checkpoint: Path, config: DataclassInstance, limit_gib: float) -> dict[str, Any]:
    """Runs a bench module on a checkpoint in a child process, under a hard limit where one can be set.

    Args:
        module: Full name of a module that ends with `answer_parent`.
        checkpoint: What it works on.
        config: What it is asked; settings that are folders do not reach it.
        limit_gib: Of its memory.

    Returns:
        The JSON of its last line, and `in_cgroup`, whether the limit was a hard one.

    Raises:
        InputError: The child failed; its last words are on stderr.
    """
    with memory_cgroup(limit_gib) as cgroup:
        done = subprocess.run(
            [sys.executable, "-m", module, str(checkpoint), json.dumps(asked_settings(config))],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=None if cgroup is None else lambda: enter_cgroup(cgroup),
        )
    if done.returncode != 0:
        killed = " (killed: it exceeded the memory limit)" if done.returncode == -9 else ""
        raise InputError(f"{checkpoint}: the process ended with status {done.returncode}{killed}")
    return json.loads(done.stdout.splitlines()[-1]) | {"in_cgroup": cgroup is not None}


def answer_parent(measure: Callable[[Path, Config], Mapping[str, Any]], config: type[Config]) -> None:
    """The child's side: reads the checkpoint and settings it was started with, prints one JSON line.

    Args:
        measure: The child's work; its figures must be JSON.
        config: The class of the settings. Folders have their defaults.
    """
    given = json.loads(sys.argv[2])
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    print(json.dumps(measure(Path(sys.argv[1]), config(**settings))))


@contextmanager
def memory_cgroup(limit_gib: float) -> Iterator[Path | None]:
    """A memory cgroup with a limit, removed at the end; None where none can be made."""
    folder, limit_file = None, ""
    for root, name in zip(CGROUP_ROOTS, ("memory.limit_in_bytes", "memory.max"), strict=True):
        candidate = root / f"strata-bench-{os.getpid()}"
        try:
            candidate.mkdir()
            (candidate / name).write_text(str(int(limit_gib * GIB)))
        except OSError:
            if candidate.is_dir():
                candidate.rmdir()
            continue
        folder, limit_file = candidate, name
        break
    if folder is None:
        print("no memory cgroup can be made here: the peak resident set alone is measured")
    else:
        print(f"memory cgroup of {limit_gib} GiB ({limit_file})")
    try:
        yield folder
    finally:
        if folder is not None:
            folder.rmdir()


def enter_cgroup(folder: Path) -> None:
    """Moves this process into a cgroup."""
    (folder / "cgroup.procs").write_text(str(os.getpid()))
