"""Settings of the bench of deadlines. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DeadlineBenchConfig:
    """Settings of the bench of deadlines: a run of two stages, and the same in a share of its time."""

    folder: Path = Path("runs/bench-deadline")
    """Where both runs leave what they leave."""
    times: int = 10
    """How often the bundled questions are asked, no two alike."""
    chunks: int = 5
    """Passages of a context: more of them make the second stage longer."""
    share: float = 1 / 3
    """Of the whole run's seconds, what the second run may take."""
