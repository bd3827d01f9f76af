"""`strata bench large`: a model far bigger than its memory, scored under a hard limit.

A random checkpoint of the shape is made when the disk has room, then a child process scores a few synthetic
questions on it with a memory budget; the peak of its whole resident set, libraries included, is what counts.
Where a memory cgroup can be made (root, Linux) the child lives in one of the limit's size, page cache
included, so that exceeding it would end it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from strata.engine.plan.shapes import SHAPES
from strata.engine.types import InputError
from strata.scripts.bench.configs import LargeBenchConfig
from strata.scripts.bench.record import RESULTS, append_result, environment_line, print_table
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint

GIB = 1 << 30
CGROUP_ROOTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
"""Version 1, where the memory controller has a tree of its own, then version 2."""


def run_large_bench(config: LargeBenchConfig) -> int:
    """Makes the checkpoint, runs the child, prints and appends the result; removes the checkpoint."""
    print(environment_line())
    shape = SHAPES[config.shape]
    checkpoint = config.folder / f"{config.shape}-{config.storage or 'bf16'}"
    started = perf_counter()
    make_random_checkpoint(shape, checkpoint, storage=config.storage)
    print(f"checkpoint ready after {perf_counter() - started:.0f} s")
    try:
        with memory_cgroup(config.limit_gib) as cgroup:
            measured = run_module("strata.scripts.bench.large.child", checkpoint, asdict(config), cgroup)
    finally:
        if not config.keep:
            shutil.rmtree(checkpoint)
    measured |= {"in_cgroup": cgroup is not None, "under_limit": measured["peak_rss_gib"] < config.limit_gib}
    print_table([{name: value for name, value in measured.items() if not isinstance(value, (dict, list))}])
    asked = {name: setting for name, setting in asdict(config).items() if not isinstance(setting, Path)}
    append_result("large", measured | {"config": asked}, RESULTS)
    return 0 if measured["under_limit"] else 1


def run_module(module: str, checkpoint: Path, settings: dict, cgroup: Path | None) -> dict:
    """Runs a bench module on a checkpoint in a process of its own; returns the JSON of its last line.

    Raises:
        InputError: the child failed; its last words are in the message.
    """
    command = [sys.executable, "-m", module, str(checkpoint), json.dumps(settings, default=str)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=None if cgroup is None else lambda: enter_cgroup(cgroup),
    )
    if done.returncode != 0:
        killed = " (killed: it exceeded the memory limit)" if done.returncode == -9 else ""
        raise InputError(f"{checkpoint}: the process ended with status {done.returncode}{killed}")
    return json.loads(done.stdout.splitlines()[-1])


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
