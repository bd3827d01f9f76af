"""Settings of the debias bench. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DebiasBenchConfig:
    """Settings of the bench of ways to debias."""

    parts: tuple[Literal["tokens", "rotations"], ...] = ("tokens", "rotations")
    """What to measure: tokens counts, rotations times the sweep, for which the machine has to be quiet."""
    shape: Literal["tiny", "tinyllama-1.1b", "llama2-7b"] = "tinyllama-1.1b"
    """Shape of the random checkpoint."""
    folder: Path = Path("runs/bench")
    """Where it is made and kept."""
    num_questions: int = 4
    """Questions of the timed runs."""
    counted_questions: int = 1000
    """Questions of part tokens."""
    prefix_tokens: int = 1200
    """Tokens that the orders of a question share."""
    option_tokens: int = 45
    """Tokens of an option in a prompt's list."""
    num_options: int = 5
    """Options a question."""
    rounds: int = 3
    """How often each kind of run is repeated, in turns; medians are compared."""
    device: str = "auto"
    """cpu or cuda:0; auto takes the first CUDA device."""
