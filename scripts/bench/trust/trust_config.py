"""Settings of the bench of trust. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrustBenchConfig:
    """Settings of the bench of trust."""

    parts: tuple[Literal["probe", "deterministic", "soak", "hostile", "fuzz", "families"], ...] = ()
    """What to measure; all by default. Hostile and fuzz run the tests of a checkout."""
    folder: Path = Path("runs/bench/trust")
    """Where checkpoints are made and kept (delete them when done)."""
    shape: Literal["tiny", "tinyllama-1.1b", "llama2-7b"] = "tinyllama-1.1b"
    """Shape of the random checkpoint of parts probe and deterministic."""
    num_layers: int = 4
    """Its layers; the probe computes one."""
    num_questions: int = 8
    """Questions of part deterministic."""
    rounds: int = 3
    """How often each kind of run is repeated, in turns; medians are reported."""
    soak_questions: int = 20_000
    """Tiny questions of part soak."""
    fuzz_inputs: int = 1_000
    """Odd inputs of part fuzz, for each reader."""
    fuzz_first: int = 0
    """Number of the first of them."""
    page: Path | None = None
    """Where part families writes its lists, such as docs/families.md."""
