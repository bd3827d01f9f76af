"""What `strata probe` can be told: its flags. Imports nothing heavy: --help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from strata.engine.machine.settings import MachineSettings
from strata.engine.types import InputError


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of a probe; every field is a flag of the same name."""

    model: Path
    """Hugging Face checkpoint directory of a decoder."""
    questions: Path
    """Questions with answers, as for `strata score`; a few hundred tell layers apart."""
    out: Path
    """Folder for probe.json."""
    task: Literal["choice", "classify"] = "choice"
    """classify: texts with labels, as for `strata score --task classify`; no trained classifier is needed."""
    labels: Path | None = None
    """With task classify: a file with the labels' names (JSON with id2label, or one a line)."""
    adapter: Path | None = None
    """PEFT LoRA adapter folder."""
    template: str | None = None
    """Built-in template or a file; statement by default, and texts as they are."""
    id_column: str = "id"
    """Column that holds ids; in a file without one, rows' numbers are ids."""
    context_column: str = "context"
    """Column that holds the retrieved context."""
    max_tokens: int | None = None
    """Longest prompt in tokens."""
    limit: int | None = None
    """Only the first N questions."""
    layers_norm: Literal["yes", "no"] = "yes"
    """no: read before the final norm."""
    folds: int = 5
    """Parts of the questions, each of which is answered by a probe that was fitted on the others."""
    seed: int = 0
    """Of the parts."""
    machine: MachineSettings = field(default_factory=MachineSettings)
    """What of the machine the probe may use."""
    progress: bool = False
    """Tell of progress on stderr (the command line does): a bar on a terminal, else a line a minute."""

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        self.machine.check()
        if self.folds < 2:
            raise InputError(f"--folds {self.folds}: expected 2 or more")
        if self.labels is not None and self.task != "classify":
            raise InputError("--labels: questions have letters, not labels; expected --task classify")
