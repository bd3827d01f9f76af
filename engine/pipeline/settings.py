"""What `strata run` is told on the command line. Imports nothing heavy: --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from strata.engine.deadline import parse_duration_s
from strata.engine.types import InputError

DRY_RUN_QUESTIONS = 10


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of one run of a pipeline."""

    config: Path
    """YAML file of members, stages, ensemble, calibration and deadline (docs/run.md)."""
    questions: Path
    """Question file as for `strata score`."""
    out: Path = Path("runs/run")
    """Folder for what the run leaves."""
    set: tuple[str, ...] = ()
    """Put a value into the YAML, such as members.big.machine.dtype=int8; repeat for several."""
    deadline: str | None = None
    """Wall time the run may take, such as 8.5h or 90m, in place of the YAML's."""
    plan: bool = False
    """Only forecast every stage, in total and against the deadline; reads no weights, searches nothing."""
    profile: str | None = None
    """With --plan: for another machine, such as kaggle-2xt4."""
    dry_run: bool = False
    """Only the first 10 questions."""
    limit: int | None = None
    """Only the first N questions."""
    probe: bool = True
    """Before a model is used, compute a first layer of its weights in two ways; stop where they differ."""
    strict: bool = False
    """Refuse odd rows instead of warning."""
    resume: bool = False
    """Go on with an interrupted run in the same --out, after its last finished group."""
    overwrite: bool = False
    """Replace a finished run in --out."""
    progress: bool = False
    """Tell of progress on stderr (the command line does): a bar on a terminal, else a line a minute."""

    @property
    def num_questions(self) -> int | None:
        """How many questions of the file are read; None for all."""
        return DRY_RUN_QUESTIONS if self.dry_run and self.limit is None else self.limit

    @property
    def changes(self) -> tuple[str, ...]:
        """What is put into the YAML."""
        return self.set if self.deadline is None else (*self.set, f"deadline={self.deadline}")

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit: {self.limit}; expected 1 or more")
        if self.deadline is not None:
            parse_duration_s("--deadline", self.deadline)
        if self.profile is not None and not self.plan:
            raise InputError("--profile: a run is on this machine; expected --plan beside it")
