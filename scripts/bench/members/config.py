"""Settings of the bench of several adapters in one sweep. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MembersBenchConfig:
    """Settings of the bench of members: adapters of one base that share its streamed layers."""

    shape: Literal["tiny", "tinyllama-1.1b", "llama2-7b"] = "tinyllama-1.1b"
    """Shape of the random checkpoint."""
    folder: Path = Path("runs/bench")
    """Where it and the adapters are made and kept."""
    num_adapters: int = 4
    """Adapters in one sweep."""
    rank: int = 16
    """Of each, on the query and value projections."""
    num_questions: int = 2
    """Questions of a run."""
    prefix_tokens: int = 500
    """Tokens that the options of a question share."""
    option_tokens: int = 40
    """Tokens of an option."""
    num_options: int = 5
    """Options a question."""
    rounds: int = 3
    """How often each kind of run is repeated, in turns; medians are compared."""
    device: str = "auto"
    """cpu or cuda:0; auto takes the first CUDA device."""
