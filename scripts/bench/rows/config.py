"""Settings of the bench of rows that share a question's text. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RowsBenchConfig:
    """Settings of the bench of rows: a question's text, then an answer with its explanation, then candidates.

    The defaults are the job of the 2025 competition on student misconceptions: 16,000 rows of about 305
    tokens, of which about a thousand have one question.
    """

    rows: int = 16_000
    """Rows in all."""
    questions: int = 16
    """Distinct questions among them."""
    question_tokens: int = 150
    """Tokens of the instruction, the question and what else its rows share."""
    row_tokens: int = 55
    """Tokens of a row's own answer and explanation."""
    candidates: int = 10
    """Candidate labels a row."""
    candidate_tokens: int = 10
    """Tokens of a candidate."""
    shape: str = "qwen3-32b"
    """Model whose sweep is predicted."""
    storage: Literal["fp16", "int8", "nf4"] = "int8"
    """How its weights are stored."""
    profile: str = "kaggle-2xt4"
    """Machine that the prediction is for."""
