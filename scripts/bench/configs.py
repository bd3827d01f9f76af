"""Settings of the benches. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SweepBenchConfig:
    """Settings of the sweep bench."""

    shape: Literal["tinyllama-1.1b", "llama2-7b", "llama2-13b", "llama2-70b"] = "tinyllama-1.1b"
    """Shape of the random checkpoint."""
    folder: Path = Path("runs/bench")
    """Where the checkpoint is made and kept (delete it when done)."""
    num_questions: int = 8
    """Questions of the strata runs."""
    num_dynamic_questions: int = 2
    """Questions of the DynamicCache loop in each round."""
    num_naive_questions: int = 2
    """Questions of the loop over single options, which is slow."""
    prefix_tokens: int = 1200
    """Tokens that the options of a question share."""
    option_tokens: int = 45
    """Tokens an option."""
    num_options: int = 5
    """Options a question."""
    rounds: int = 3
    """How often each kind of run is repeated, in turns; medians are reported."""
    memory_gib: float | None = None
    """Budget of the streamed run; a quarter of the checkpoint by default."""
    micro_batch_tokens: int | None = None
    """Fix the planner's choice."""
    device: str = "auto"
    """cpu or cuda:0; auto takes the first CUDA device."""
