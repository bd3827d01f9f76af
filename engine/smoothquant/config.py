"""Which questions are asked. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Settings of one such pass.

    Attributes:
        questions: a question file; answers are not looked at.
        num_questions: the first so many are asked.
        max_tokens: longest prompt.
    """

    questions: Path
    num_questions: int = 64
    max_tokens: int = 512
