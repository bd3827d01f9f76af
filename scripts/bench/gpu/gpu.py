"""`strata bench gpu`: the first thing to run on a card: is it right, and where does its time go?

Needs neither network nor checkout: the bundled model and random weights are scored. Each part ends within
nine minutes, and correct.json or fast.json is whole after every stage, so that a session that is cut short
still tells what it found. Parts that end are records of gpu.jsonl beside them.
"""

from __future__ import annotations

import json
import time

import torch

from strata.engine.types import InputError
from strata.scripts.bench.gpu.config import GpuBenchConfig, GpuPart
from strata.scripts.bench.gpu.correct import CORRECT
from strata.scripts.bench.gpu.fast import FAST
from strata.scripts.bench.gpu.stages import AcceptanceStage, run_stages
from strata.scripts.bench.record import append_result, asked_settings, print_environment, run_identity

BUDGET_S = 520.0
STAGES: dict[GpuPart, tuple[AcceptanceStage, ...]] = {"correct": CORRECT, "fast": FAST}


def run_gpu_bench(config: GpuBenchConfig) -> int:
    """Runs the parts. Returns the exit status: 1 where something is wrong.

    Raises:
        InputError: there is no card.
    """
    if not torch.cuda.is_available():
        raise InputError("strata bench gpu: torch finds no CUDA device here; expected one or more")
    print_environment()
    config.folder.mkdir(parents=True, exist_ok=True)
    is_right = True
    for part in config.parts:
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        about = {"part": part, "started": started, **run_identity({"tiny": config.tiny})}
        path = config.folder / f"{part}.json"
        print(f"-- {part}: {path}", flush=True)
        is_right &= run_stages(STAGES[part], config, path, about, BUDGET_S)
        if not config.tiny:
            stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
            stages.get("gpu_tests", {}).pop("told", None)  # lines of a test run, with this machine's folders
            append_result(
                "gpu", {"config": asked_settings(config), "part": part, "stages": stages}, config.folder
            )
    return int(not is_right)
