"""What `strata pack` can be told: its flags. Imports nothing heavy: --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.engine.types import InputError

Format = Literal["int8", "nf4", "bf16", "fp16", "fp32"]
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Settings of one conversion; every field is a flag of the same name."""

    model: Path
    """Hugging Face checkpoint directory to convert, plain or quantised (safetensors), or a GGUF file."""
    format: Format
    """int8 (compressed-tensors, a scale a channel), nf4 (bitsandbytes), or a plain checkpoint's dtype."""
    out: Path
    """Folder to leave; absent until it is whole. Meanwhile the work lies in OUT.partial, where a second call
    with the same settings goes on."""
    verify: bool = False
    """Read everything back and compare it with its checksums."""
    double_quant: bool = True
    """With --format nf4: the scales are quantised too."""
    layers: float | None = None
    """Only the first layers: so many, or such a share of them (0.5); the final norm and heads stay."""
    calibrate: Path | None = None
    """Question file: what activations are like on its questions decides how int8 rounds weights, so that
    errors cancel (GPTQ), and with --alpha how much of activations' spread weights take over (SmoothQuant)."""
    calibrate_questions: int = 64
    """With --calibrate: its first so many questions."""
    alpha: float | None = None
    """With --calibrate: how much of activations' spread is moved into weights; 1 makes their channels equal.
    Without it nothing for int8, as outlier columns are computed apart, and 0.75 for other formats."""
    plain: tuple[str, ...] = ()
    """With --format int8 or nf4: linear layers that stay plain, by name, such as v_proj, which is small where
    heads share keys and values, and which int8 rounds with the most harm for its size."""
    shard_gib: float = 4.0
    """Largest size of a file."""
    progress: bool = False
    """Tell of progress on stderr (the command line does): a bar on a terminal, else a line a minute."""

    @property
    def shard_bytes(self) -> int:
        """Largest size of a file."""
        return int(self.shard_gib * GIB)

    @property
    def smoothing_alpha(self) -> float | None:
        """How much is moved; None for nothing."""
        return 0.75 if self.alpha is None and self.format != "int8" else self.alpha

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        if not 0 < self.shard_gib < float("inf"):
            raise InputError(f"--shard-gib: {self.shard_gib} is no file size; expected a number above 0")
        if self.calibrate is not None and self.format == "nf4":
            raise InputError(
                "--calibrate: NF4 computes with activations as they are; expected another --format"
            )
        if self.plain and self.format not in ("int8", "nf4"):
            raise InputError(f"--plain: with --format {self.format} all layers are; expected int8 or nf4")
        if self.calibrate_questions < 1:
            raise InputError(f"--calibrate-questions: {self.calibrate_questions}; expected 1 or more")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise InputError(f"--alpha: {self.alpha}; expected a share from 0 to 1")
