"""Settings of the bench of starts. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StartBenchConfig:
    """Settings of the bench of starts: how long a user waits before anything happens."""

    model: Path | None = None
    """A checkpoint for the run; the bundled small model by default."""
    rounds: int = 5
    """How often each command is started; medians are reported."""
