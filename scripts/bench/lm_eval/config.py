"""Settings of the bench beside lm-evaluation-harness. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BenchedModel = Literal["smollm2-135m", "tinyllama-1.1b", "tiny"]
BenchedTask = Literal["arc_challenge", "openbookqa"]

MODELS: tuple[BenchedModel, ...] = ("smollm2-135m", "tinyllama-1.1b")
TASKS: tuple[BenchedTask, ...] = ("arc_challenge", "openbookqa")
SHOTS = (0, 5)
BATCH_SIZES = (1, 4, 16, 64)


@dataclass(frozen=True, kw_only=True)
class LMEvalBenchConfig:
    """Settings of the bench that runs tasks with `--model strata` and with `--model hf`."""

    data: Path
    """Folder with arc_challenge_val.jsonl and openbookqa_dev.jsonl: question, options[], answer."""
    models: tuple[BenchedModel, ...] = ()
    """A real model, which `make real-models` installs, or random weights of a shape; by default
    smollm2-135m and tinyllama-1.1b."""
    tasks: tuple[BenchedTask, ...] = ()
    """Tasks, asked as the harness' own of these names; both by default."""
    shots: tuple[int, ...] = ()
    """Few-shot examples before each question; 0 and 5 by default."""
    sampler: Literal["default", "first_n"] = "default"
    """How the harness chooses them: other ones for each question, or the same for all."""
    limit: int | None = None
    """Only the first N questions of each task."""
    batch_sizes: tuple[int, ...] = ()
    """What the hf model is tried with, of which the best is used; 1, 4, 16 and 64 by default."""
    trial_questions: int = 12
    """On so many questions."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """What both compute in."""
    device: str = "cpu"
    """cpu or cuda:0."""
    rounds: int = 1
    """How often both are run, in turns; medians are compared."""
    folder: Path = Path("runs/bench")
    """Where the checkpoints are made and kept."""
