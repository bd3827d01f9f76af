"""What a training run can be told: the flags of `strata train`. Imports nothing heavy: --help is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.engine.types import InputError
from strata.training.tasks import Task, trains_classifier


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run; every field is a flag of the same name."""

    model: Path
    """Hugging Face checkpoint directory to train on."""
    out: Path
    """Folder for adapter (or model), checkpoints, log.jsonl and train.json."""
    questions: Path | None = None
    """Questions with answers: CSV, Parquet or JSONL, as for `strata score`. Task lm takes --passages."""
    task: Task = "binary"
    """binary, contrast: right or wrong, an option at a time; choice: the best of a question's options;
    letters: the letter after all options; lm: the next token of --passages; multiple-choice: an encoder;
    classify: the label of a text."""
    labels: Path | None = None
    """With task classify: a file with the labels' names (JSON with id2label, or one a line)."""
    class_weights: Literal["none", "balanced"] = "none"
    """With task classify: balanced weighs a label by 1 / its share of --questions."""
    layers: float | None = None
    """Train the first layers alone, so many or such a share of them (0.5), the head after them."""
    layers_norm: Literal["yes", "no"] = "yes"
    """no: the head reads before the final norm."""
    passages: Path | None = None
    """With task lm: a corpus as for `strata index` (JSONL, Parquet, text, or a folder of them)."""
    block_tokens: int = 512
    """With task lm: the most tokens computed at a time; longer passages are cut."""
    valid: Path | None = None
    """Questions (task lm: passages) to evaluate on while training."""
    valid_share: float = 0.0
    """Instead of --valid: the share of the questions that is held out to evaluate on."""
    limit: int | None = None
    """Only the first N questions or passages."""
    id_column: str = "id"
    """Column that holds ids; in a file without one, rows' numbers are ids."""
    context_column: str = "context"
    """Column that holds the retrieved context."""
    template: str | None = None
    """Built-in template (statement, yes-no, letters) or a file; the task's by default."""
    chat: bool = False
    """Ask in the tokenizer's chat template, as `strata score --chat` does (task letters)."""
    system: str | None = None
    """System message of the chat."""
    shots: Path | None = None
    """Question file with answers, of which the first --num-shots are shown before every question."""
    num_shots: int = 5
    """How many of --shots are shown; a question that is among them sees the next one instead of itself."""
    max_tokens: int | None = None
    """Longest prompt in tokens; only contexts are ever shortened."""
    debias: Literal["none", "set"] = "none"
    """set: with task binary, contrast or choice, prompts list all options unordered, as in `strata score`."""
    shuffle_options: bool = True
    """--no-shuffle-options shows options in the order of the file; by default in another one each epoch."""
    soft_labels: Path | None = None
    """scores.parquet of a `strata score` run on the same questions, to learn its probabilities."""
    soft_weight: float = 0.5
    """Weight of the soft labels against the answers; at 1 the questions need no answers."""
    soft_temperature: float = 1.0
    """Temperature of the soft labels; above 1 flattens them."""
    label_smoothing: float = 0.0
    """Share of every label that is spread over all options."""

    lora_r: int = 16
    """Rank of LoRA."""
    lora_alpha: float = 32.0
    """LoRA is scaled by alpha / r."""
    lora_dropout: float = 0.05
    """Dropout before LoRA."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Linear layers to adapt, such as q_proj v_proj; all-linear takes all of the decoder layers'."""
    full: bool = False
    """Train all weights of a small checkpoint, without LoRA."""
    adapter: Path | None = None
    """PEFT LoRA adapter to start from."""

    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    head_bias: bool = False
    """Give the classifier a bias; one that it already has is kept and trained."""
    head_lr_scale: float = 0.2
    """Learning rate of the classifier head, as a multiple of --learning-rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to 0 along a cosine or a line, or not at all."""
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises."""
    epochs: float = 1.0
    """Passes over the training set."""
    max_steps: int | None = None
    """Optimizer steps, instead of --epochs."""
    batch_questions: int = 16
    """Questions (task lm: blocks) an optimizer step, over all processes."""
    micro_batch_tokens: int | None = None
    """Tokens computed at a time; a batch is split to fit, gradients add up."""
    max_grad_norm: float = 1.0
    """Longest gradient: longer ones are scaled down to it; 0 leaves them."""
    seed: int = 0
    """Of everything random: order, shuffled options, initial weights, dropout, what is held out."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute dtype; auto is the checkpoint's where the device is fast in it, else one in which it is;
    an encoder's is float32."""
    base_storage: Literal["auto", "nf4"] = "auto"
    """nf4 keeps the frozen weights in 4 bits (QLoRA; needs bitsandbytes and CUDA)."""
    devices: str = "auto"
    """auto (the GPU of this process, else the CPU), cpu, or one such as cuda:0."""
    streamed: bool = False
    """Read the frozen weights from disk, a layer at a time, forward and back: for models beyond memory."""
    memory_gib: float | None = None
    """Budget for weights and activations on a device (on CPU: in host RAM)."""
    boundary_store: Literal["ram", "disk"] = "ram"
    """With --streamed: where the layers' inputs wait for the way back."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs and compute each layer again on the way back."""

    eval_first: bool = True
    """Evaluate before the first step, to show what training changes; --no-eval-first leaves it out."""
    eval_every: int = 100
    """Steps between evaluations; 0 evaluates only at the end."""
    eval_limit: int | None = None
    """Evaluate on the first N of the validation questions."""
    early_stop: int = 0
    """Stop after so many evaluations in a row without a better MAP@3 (task lm: loss); 0 never does."""
    save_every: int = 100
    """Steps between checkpoints for --resume; 0 leaves none."""
    keep_checkpoints: int = 2
    """Checkpoints kept, the newest ones."""
    resume: bool = False
    """Go on from the newest whole checkpoint in --out, to the same weights as without the interruption."""
    tensorboard: Literal["auto", "yes", "no"] = "auto"
    """Write curves for TensorBoard; auto does where the package is installed."""
    wandb: str | None = None
    """Weights & Biases project to log to."""
    plan: bool = False
    """Only print what a step needs of memory, and steps, tokens and time of the run; trains nothing."""
    progress: bool = False
    """Tell of progress on stderr (the command line does): a bar on a terminal, else a line a minute."""

    @property
    def has_validation(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.valid is not None or self.valid_share > 0

    def check(self) -> None:
        """Raises InputError, naming the flag, when a setting means nothing or two contradict each other."""
        self._check_counts()
        self._check_numbers()
        self._check_data()
        self._check_combinations()
        if self.model.suffix.lower() == ".gguf":
            raise InputError(
                f"--model: {self.model} is a GGUF file; expected a Hugging Face checkpoint directory, "
                "which `strata pack --format bf16` makes of one"
            )

    def _check_counts(self) -> None:
        for flag, value, least in (
            ("--limit", self.limit, 1),
            ("--max-tokens", self.max_tokens, 1),
            ("--block-tokens", self.block_tokens, 1),
            ("--lora-r", self.lora_r, 1),
            ("--max-steps", self.max_steps, 1),
            ("--batch-questions", self.batch_questions, 1),
            ("--micro-batch-tokens", self.micro_batch_tokens, 1),
            ("--eval-limit", self.eval_limit, 1),
            ("--keep-checkpoints", self.keep_checkpoints, 1),
            ("--eval-every", self.eval_every, 0),
            ("--early-stop", self.early_stop, 0),
            ("--save-every", self.save_every, 0),
            ("--seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{flag}: {value}; expected {least} or more")

    def _check_numbers(self) -> None:
        for flag, value in (
            ("--lora-alpha", self.lora_alpha),
            ("--learning-rate", self.learning_rate),
            ("--head-lr-scale", self.head_lr_scale),
            ("--epochs", self.epochs),
            ("--soft-temperature", self.soft_temperature),
            ("--memory-gib", self.memory_gib),
        ):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{flag}: {value}; expected a number above 0")
        for flag, value in (("--weight-decay", self.weight_decay), ("--max-grad-norm", self.max_grad_norm)):
            if not 0 <= value < math.inf:
                raise InputError(f"{flag}: {value}; expected 0 or more")
        for flag, value in (
            ("--valid-share", self.valid_share),
            ("--label-smoothing", self.label_smoothing),
            ("--lora-dropout", self.lora_dropout),
            ("--warmup-share", self.warmup_share),
        ):
            if not 0 <= value < 1:
                raise InputError(f"{flag}: {value}; expected a share from 0 to below 1")
        if not 0 < self.soft_weight <= 1:
            raise InputError(f"--soft-weight: {self.soft_weight}; expected a share above 0, at most 1")

    def _check_data(self) -> None:
        given, other = ("passages", "questions") if self.task == "lm" else ("questions", "passages")
        if getattr(self, given) is None:
            raise InputError(f"--{given}: nothing to train on; --task {self.task} expects it")
        if getattr(self, other) is not None:
            raise InputError(f"--{other}: --task {self.task} does not read it; expected --{given} alone")
        if self.task == "lm" and self.soft_labels is not None:
            raise InputError("--soft-labels: --task lm has no options to label")
        if self.valid is not None and self.valid_share:
            raise InputError("--valid and --valid-share: expected one of them")
        if self.early_stop and not (self.has_validation and self.eval_every):
            raise InputError(
                "--early-stop: needs evaluations; expected --valid or --valid-share, and --eval-every"
            )

    def _check_combinations(self) -> None:
        if not self.lora_targets or not all(self.lora_targets):
            raise InputError("--lora-targets: an empty name; expected all-linear or names such as q_proj")
        for flag, value in (
            ("--adapter", self.adapter is not None),
            ("--base-storage nf4", self.base_storage == "nf4"),
            ("--streamed", self.streamed),
        ):
            if self.full and value:
                raise InputError(f"--full: trains all weights as they are; does not go with {flag}")
        for flag, given in (
            ("--labels", self.labels is not None),
            ("--class-weights balanced", self.class_weights != "none"),
        ):
            if given and self.task != "classify":
                raise InputError(f"{flag}: --task {self.task} has no labels; expected --task classify")
        if self.head_bias and not trains_classifier(self.task):
            raise InputError(
                f"--head-bias: --task {self.task} trains no classifier of a decoder; expected binary, "
                "contrast, choice or classify"
            )
        if self.debias != "none" and self.task not in ("binary", "contrast", "choice"):
            raise InputError(
                f"--debias {self.debias}: task {self.task} does not score an option by its text; "
                "expected --task binary, contrast or choice"
            )
        for flag, given in (("--chat", self.chat), ("--system", self.system is not None)):
            if given and self.task != "letters":
                raise InputError(f"{flag}: --task {self.task} reads no answer; expected --task letters")
        if self.shots is not None and self.task in ("lm", "multiple-choice", "classify"):
            raise InputError(f"--shots: --task {self.task} has no prompts with examples; expected letters")
        if self.task == "multiple-choice" and (self.layers is not None or self.layers_norm == "no"):
            raise InputError(
                "--layers, --layers-norm: expected a decoder; --task multiple-choice is an encoder's"
            )
        if self.full and self.layers_norm == "no":
            raise InputError("--layers-norm no: a whole model has its final norm; does not go with --full")
        if self.streamed and self.task == "multiple-choice":
            raise InputError("--streamed: only decoders are streamed; --task multiple-choice is an encoder's")
