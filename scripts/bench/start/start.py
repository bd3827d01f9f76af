"""`strata bench start`: seconds from a command's start to its help, and to a run's first layer.

`help_s`: a process that prints `strata --help`, from its start to its end. `first_layer_s`: `strata score` on
the bundled questions, from its process' start to the moment when a device begins with the first layer of the
sweep; `run_s` is all of that run. `imports_s`: a process that imports torch and transformers' models and does
nothing: what a run cannot do without, so `first_layer_over_imports` tells of the machine's speed no more.
Each process is new; after the first round its files are in the page cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from strata.scripts.bench.record import (
    RESULTS,
    append_result,
    asked_settings,
    print_environment,
    print_table,
)
from strata.scripts.bench.start.config import StartBenchConfig
from strata.scripts.demo import ADAPTER, MODEL, QUESTIONS_PATH

# perf_counter is one clock for all processes of a machine on Linux.
SCORE = """
import json, sys
from strata.engine.results.timeline import Timeline
from strata.scripts.start import main

timelines, begin = [], Timeline.begin
Timeline.begin = lambda self, name: timelines.append(self) or begin(self, name)
status = main()
first = min(span.start_s for span in timelines[0].spans if span.work == "compute")
print(json.dumps(timelines[0].started + first))
sys.exit(status)
"""
IMPORT = "import torch; from transformers import AutoTokenizer, LlamaModel"
HELP = "import sys; from strata.scripts.start import main; sys.argv[1:] = ['--help']; sys.exit(main())"


def run_start_bench(config: StartBenchConfig) -> int:
    """Starts each command several times, prints and appends the result."""
    print_environment()
    figures = measure_starts(config)
    print_table([figures])
    append_result("start", figures | {"config": asked_settings(config)}, RESULTS)
    return 0


def measure_starts(config: StartBenchConfig) -> dict[str, Any]:
    """Medians and the slowest of all rounds, in seconds."""
    helps = [_seconds_of(HELP)[0] for _ in range(config.rounds)]
    imports, runs = [], []
    for _ in range(config.rounds):
        imports.append(_seconds_of(IMPORT)[0])
        runs.append(_run_to_first_layer(config))
    firsts = [first_s for first_s, _ in runs]
    return {
        "help_s": median(helps),
        "help_slowest_s": max(helps),
        "first_layer_s": median(firsts),
        "first_layer_slowest_s": max(firsts),
        "run_s": median(run_s for _, run_s in runs),
        "imports_s": median(imports),
        "first_layer_over_imports": median(firsts) / median(imports),
    }


def _run_to_first_layer(config: StartBenchConfig) -> tuple[float, float]:
    """Seconds to the first layer, and of the whole run."""
    flags = ["--questions", str(QUESTIONS_PATH)]
    flags += ["--model", str(config.model or MODEL)]
    flags += [] if config.model else ["--adapter", str(ADAPTER)]
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        seconds, printed = _seconds_of(SCORE, "score", *flags, "--out", str(Path(folder) / "run"))
    return float(json.loads(printed.splitlines()[-1])) - started, seconds


def _seconds_of(code: str, *arguments: str) -> tuple[float, str]:
    """Seconds of a process, and what it printed."""
    command: Sequence[str] = [sys.executable, "-c", code, *arguments]
    started = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return perf_counter() - started, done.stdout
