"""Settings of `strata bench train-encoder`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainEncoderBenchConfig:
    """Settings of the bench of a trained encoder."""

    data: Path
    """Folder with stem1k.csv, mcq6k.csv, kaggle200.csv and wiki_passages.jsonl."""
    encoder: str = "all-MiniLM-L6-v2"
    """Encoder to train: a checkpoint folder, or the name of one that an installed package holds."""
    folder: Path = Path("runs/bench/train-encoder")
    """Where index, question files, model and run are made (delete it when done). A second call with the same
    settings goes on with an interrupted training."""
    limit: int | None = None
    """Only the first N questions of each training set."""
    epochs: float = 3.0
    """Passes over the training questions."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    head_lr_scale: float = 5.0
    """Learning rate of the head, which is new, as a multiple of it."""
    batch_questions: int = 16
    """Questions an optimizer step."""
    max_tokens: int = 256
    """Longest row; contexts are cut to it."""
    context_tokens: int = 180
    """Budget of a retrieved context."""
    dtype: Literal["auto", "bfloat16"] = "auto"
    """What training computes in; bfloat16 halves the time where the processor has it."""
    lora: bool = False
    """Train LoRA and the head instead of all weights."""
    threads: int | None = None
    """Torch's threads; all cores by default."""
    seed: int = 0
    """Of everything random."""
