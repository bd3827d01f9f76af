"""Runs stages one after another within a time limit; what is known is on disk after each. Knows no GPU."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.engine.files import write_text_atomically
from strata.engine.types import as_one_line
from strata.scripts.bench.gpu.config import GpuBenchConfig

Figures = dict[str, Any]
"""What a stage found; "ok": False says that something is wrong, "why" that it could not run here."""


@dataclass(frozen=True, kw_only=True)
class AcceptanceStage:
    """A stage by name.

    Attributes:
        name: in the results.
        run: finds the figures.
        limit_s: it is not begun with less time left.
        ends_all: whether what comes later means nothing once this one is wrong.
    """

    name: str
    run: Callable[[GpuBenchConfig], Figures]
    limit_s: float
    ends_all: bool = True


def run_stages(
    stages: Sequence[AcceptanceStage],
    config: GpuBenchConfig,
    path: Path,
    about: Mapping[str, Any],
    budget_s: float,
) -> bool:
    """Runs stages, prints a line each, and writes all figures to a file after each of them.

    Args:
        stages: in order.
        config: handed to each.
        path: of the file.
        about: what else the file says.
        budget_s: seconds for all; stages that would not end in time are skipped.

    Returns:
        Whether nothing was wrong.
    """
    started, found = time.perf_counter(), dict[str, Figures]()
    is_right = True
    for stage in stages:
        left_s = budget_s - (time.perf_counter() - started)
        if left_s < stage.limit_s:
            entry: Figures = {"verdict": "skipped", "why": f"{left_s:.0f} s left of {budget_s:.0f}"}
        else:
            entry = _run(stage, config)
        found[stage.name] = {**entry, "limit_s": stage.limit_s}
        print(f"{stage.name}: {_line(entry)}", flush=True)
        write_text_atomically(path, json.dumps({**about, "stages": found}, indent=1, default=str) + "\n")
        if entry["verdict"] in ("wrong", "error"):
            is_right = False
            if stage.ends_all:
                break
    return is_right


def _run(stage: AcceptanceStage, config: GpuBenchConfig) -> Figures:
    started = time.perf_counter()
    try:
        figures = stage.run(config)
        verdict = "skipped" if "why" in figures else "ok" if figures.pop("ok", True) else "wrong"
        entry = {"verdict": verdict, **figures}
    except Exception as error:  # whatever a card does, the stages before it have to be told
        told = as_one_line(f"{type(error).__name__}: {error}")
        entry = {"verdict": "error", "error": told, "trace": traceback.format_exc()[-2000:]}
    return {**entry, "seconds": round(time.perf_counter() - started, 2)}


def _line(entry: Figures) -> str:
    told = {name: value for name, value in entry.items() if name not in ("verdict", "seconds", "trace")}
    text = json.dumps(told, default=str)
    return f"{entry['verdict']} in {entry.get('seconds', 0)} s {text[:500]}"
