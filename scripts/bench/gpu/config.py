"""Settings of the acceptance of GPUs. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

GpuPart = Literal["correct", "fast"]


@dataclass(frozen=True, kw_only=True)
class GpuBenchConfig:
    """Settings of the acceptance of GPUs: what is right on them, and how fast they are."""

    part: tyro.conf.Positional[Literal["correct", "fast", "both"]] = "both"
    """Each part ends within nine minutes."""
    folder: Path = Path("runs/gpu")
    """Where correct.json and fast.json are kept, and checkpoints are made (delete them when done)."""
    tiny: bool = False
    """Small sizes and few repeats: tells whether the stages work, not how fast a card is."""

    @property
    def parts(self) -> tuple[GpuPart, ...]:
        """Those to run."""
        return ("correct", "fast") if self.part == "both" else (self.part,)
