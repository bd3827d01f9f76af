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


@dataclass(frozen=True, kw_only=True)
class LoraBenchConfig:
    """Settings of the bench of a real model before and after a LoRA."""

    data: Path
    """Folder with stem1k.csv, kaggle200.csv and wiki_passages.jsonl."""
    model: Path | None = None
    """Decoder checkpoint or GGUF file; by default SmolLM2 as `make real-models` installs it."""
    folder: Path = Path("runs/bench/lora")
    """Where contexts, model and runs are made and kept: a second call goes on where the first stopped."""
    task: Literal["choice", "binary"] = "choice"
    """What is learned."""
    adapter: Path | None = None
    """PEFT LoRA adapter to start from, such as an earlier call's in another --folder."""
    context_tokens: int = 110
    """Budget of a context: the best sentences of the three best pages."""
    max_steps: int = 110
    """Optimizer steps."""
    batch_questions: int = 8
    """Questions a step."""
    learning_rate: float = 8e-4
    """Peak learning rate, of the head as well."""
    lora_r: int = 8
    """Rank of LoRA; alpha is twice as much."""
    lora_targets: tuple[str, ...] = ("v_proj",)
    """Linear layers to adapt."""
    layers: float | None = None
    """Train and read after the first layers alone, so many or such a share of them."""
    valid_share: float = 0.0
    """Share of the training questions that is held out, to choose settings by instead of by the test set."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Compute dtype of the base model."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True, kw_only=True)
class Int8BenchConfig:
    """Settings of the bench of a real model in int8."""

    data: Path
    """Folder with the question sets."""
    model: Path | None = None
    """Decoder checkpoint or GGUF file; by default SmolLM2 as `make real-models` installs it."""
    question_set: str = "arc_challenge_val"
    """Set that is scored."""
    calibration_set: str = "openbookqa_dev"
    """Set that the packed model is calibrated on."""
    alpha: float | None = None
    """How much of activations' spread moves into weights; nothing without it."""
    plain: tuple[str, ...] = ()
    """Linear layers of the packed model that stay plain, by name."""
    folder: Path = Path("runs/bench/int8")
    """Where the packed model and the runs are kept; another one for other settings."""
    limit: int | None = None
    """Only the first N questions."""
