"""What a scoring job can be told: the flags of `strata score`. Imports nothing heavy: --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.engine.deadline import parse_duration_s
from strata.engine.types import InputError


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of one run; every field is a flag of the same name."""

    model: Path
    """Hugging Face checkpoint directory, as downloaded (safetensors)."""
    questions: Path
    """CSV, Parquet, JSONL: id,prompt,A..E[,answer][,context] or id,question,options[][,answer][,context]."""
    out: Path
    """Folder for what the run leaves."""
    adapter: tuple[Path, ...] = ()
    """PEFT LoRA adapter folder; repeat for several, which then share one sweep of the base weights."""
    head: Literal["auto", "binary", "contrast", "yes-no", "letters", "loglik"] = "auto"
    """How options are scored; auto takes a classifier head if checkpoint or adapter has one, else yes-no."""
    debias: Literal["none", "rotate"] = "none"
    """rotate shows the options in every cyclic order and averages (head letters)."""
    context_column: str = "context"
    """Column that holds the retrieved context."""
    max_tokens: int | None = None
    """Longest prompt in tokens; only contexts are ever shortened."""
    template: str | None = None
    """Built-in template (statement, yes-no, letters) or a file; the head's own by default."""
    devices: str = "auto"
    """auto, cpu, or a list such as cuda:0,cuda:1; all share one read of each layer."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Compute dtype; auto is the checkpoint's own where the device is fast in it; int8 takes weights (a
    scale a channel) and activations (a scale a token) of all linear layers to 8 bits, and measures what that
    does to scores."""
    int8_check_questions: int = 16
    """With --dtype int8: questions scored again without it, for run.json; 0 skips this, and one more read."""
    memory_gib: float | None = None
    """Budget for weights and activations on a device (on CPU: beyond what the libraries take)."""
    host_memory_gib: float | None = None
    """Budget in host RAM."""
    strict: bool = False
    """Refuse odd rows instead of warning."""
    verify: bool = False
    """Check every tensor read against the checksums that `strata pack` left."""
    cache_dir: Path | None = None
    """Folder on a fast local disk that keeps what is read from a slow one, for later sweeps and runs."""
    save_prompts: bool = False
    """Leave prompts.jsonl: tokens, text and scored positions of every branch."""
    deadline: str | None = None
    """Wall time the run may take, such as 8.5h or 90m; questions not reached get the longest option first."""
    resume: bool = False
    """Go on with an interrupted run in the same --out; a long run is cut into groups that are kept."""
    limit: int | None = None
    """Only the first N questions."""
    micro_batch_tokens: int | None = None
    """Fix the planner's choice: tokens a micro-batch."""
    num_groups: int | None = None
    """Fix the planner's choice: groups, each a sweep over the weights."""
    resident_layers: int | None = None
    """Fix the planner's choice: layers that stay in memory."""
    hidden_store: Literal["device", "ram", "disk"] | None = None
    """Fix the planner's choice: where hidden states wait between layers."""
    progress: bool = False
    """Show a progress bar (the command line does so on a terminal)."""

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        for flag, budget in (("--memory-gib", self.memory_gib), ("--host-memory-gib", self.host_memory_gib)):
            if budget is not None and not budget > 0:
                raise InputError(f"{flag}: {budget} is no amount of memory; expected a number above 0")
        if self.int8_check_questions < 0:
            raise InputError(f"--int8-check-questions: {self.int8_check_questions}; expected 0 or more")
        if self.deadline is not None:
            parse_duration_s("--deadline", self.deadline)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(ScoreConfig):
    """Settings of `strata plan`: those of a run, which leaves nothing, or a shape without a checkpoint."""

    # Not required when --shape says what the model is; run_plan checks which of both was given.
    model: Path | None = None  # type: ignore[assignment]
    """Hugging Face checkpoint directory; or give --shape."""
    questions: Path | None = None  # type: ignore[assignment]
    """Question file; with --shape their number."""
    out: Path = Path("runs/plan")
    """Not used: a plan leaves nothing."""
    profile: str | None = None
    """Plan for another machine: kaggle-2xt4, h100, cpu, or a file of `strata bench calibrate --out FILE`."""
    shape: str | None = None
    """A model that is not there: tinyllama-1.1b, llama2-7b, llama2-13b, llama2-70b, or a config.json."""
    tokens: int = 1500
    """With --shape: tokens to compute a question, its options included."""
    options: int = 5
    """With --shape: options a question."""
    option_tokens: int = 40
    """With --shape: tokens an option."""
    storage: Literal["all", "fp16", "int8", "nf4"] = "all"
    """With --shape: how the weights are stored."""
    json: bool = False
    """With --shape: also print the table as one JSON line."""
