"""Settings of the accuracy bench. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SetName = Literal["arc_challenge_val", "openbookqa_dev", "kaggle200", "kaggle200_context"]
HeadName = Literal["loglik", "letters", "yes-no", "letters-rotate"]


@dataclass(frozen=True, kw_only=True)
class AccuracyBenchConfig:
    """Settings of the accuracy bench."""

    data: Path
    """Folder with arc_challenge_val.jsonl, openbookqa_dev.jsonl and kaggle200.csv."""
    models: tuple[Path, ...] = ()
    """Decoder checkpoints or GGUF files; by default those that `make real-models` installs."""
    sets: tuple[SetName, ...] = ()
    """Question sets; all by default."""
    heads: tuple[HeadName, ...] = ()
    """Heads; all by default. Each is also asked in a chat where the model has a chat template."""
    folder: Path = Path("runs/bench/accuracy")
    """Where every run is kept: a second call with the same settings goes on where the first one stopped."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Compute dtype."""
    max_tokens: int = 512
    """Longest prompt; contexts are cut to it."""
    limit: int | None = None
    """Only the first N questions of each set."""
    table: Path | None = None
    """File to leave the table in, as Markdown."""
