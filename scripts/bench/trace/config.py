"""Settings of the bench that traces a layer. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TraceBenchConfig:
    """Settings of the bench that counts what a layer asks of a card, at true sizes and without one."""

    shape: str = "llama2-70b"
    """Model shape whose layer is traced."""
    micro_batch_tokens: int = 8192
    """Tokens of the micro-batch, the default on cards."""
    prefix_tokens: int = 1200
    """Tokens that a question's options share."""
    option_tokens: int = 45
    """Tokens of an option."""
    num_options: int = 5
    """Options of a question."""
