"""run.json: what was run, on which machine, what was planned, what was measured, and how it ended.

Knows nothing of the content of plan, measured and metrics; it only makes sure that they reach the disk as
valid JSON also when the run fails.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType

from strata.engine.files import OutputError, to_json, write_text_atomically
from strata.engine.results.machine_facts import collect_run_info
from strata.engine.types import InputError, RunWarnings

log = logging.getLogger(__name__)


class RunRecord:
    """Context manager around a run that leaves run.json however the block ends.

    Until `begin()` is called the run is still checking its input: an InputError then leaves no file and no
    folder. From `begin()` on run.json exists, first with status "running", at the end with "done", "failed"
    or "interrupted". The exception, if any, always propagates.

    Attributes:
        plan: What the planner decided.
        measured: What the run found.
        metrics: Metrics over the questions with an answer, None when there are none.
        warnings: Odd rows and messages; the same object that the stages write to.
    """

    def __init__(self, path: Path, config: Mapping[str, object], warnings: RunWarnings | None = None) -> None:
        """Remembers where run.json goes and how the run is configured; touches no file.

        Args:
            path: The run.json to leave; its folder is made when needed.
            config: The resolved configuration.
            warnings: Where the run collects its warnings; a new one when None.
        """
        self.path = path
        self.config = config
        self.warnings = RunWarnings() if warnings is None else warnings
        self.plan: dict[str, object] = {}
        self.measured: dict[str, object] = {}
        self.metrics: dict[str, object] | None = None
        self.status = "running"
        self.error: dict[str, str] | None = None
        self._has_begun = False

    def __enter__(self) -> RunRecord:
        return self

    @cached_property
    def run_info(self) -> dict:
        """What `collect_run_info` says, asked once, no earlier than `begin()` needs it."""
        return collect_run_info(self.config)

    def begin(self) -> None:
        """Says that the input is good: makes the folder and writes run.json with status "running".

        Raises:
            OutputError: If run.json cannot be written.
        """
        self._has_begun = True
        self._write()

    def as_dict(self) -> dict:
        """What run.json holds at this moment, made of plain JSON types only."""
        # Several members may find the same question odd.
        ids_of = {kind: list(dict.fromkeys(ids)) for kind, ids in self.warnings.rows.items()}
        rows = {kind: {"count": len(ids), "ids": ids} for kind, ids in ids_of.items()}
        record = {
            "status": self.status,
            "error": self.error,
            "run_info": self.run_info,
            "plan": self.plan,
            "measured": self.measured,
            "metrics": self.metrics,
            "warnings": {"rows": rows, "messages": self.warnings.messages},
        }
        return {key: to_json(value) for key, value in record.items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        elif self._has_begun or not isinstance(error, InputError):
            self._tell(error)

    def _finish(self) -> None:
        self.status = "done"
        try:
            self._write()
        except KeyboardInterrupt as interrupt:
            self._tell(interrupt)
            raise

    def _tell(self, error: BaseException) -> None:
        self.status = "interrupted" if _is_interrupt(error) else "failed"
        if self.status == "interrupted" and not self._has_begun and self.path.exists():
            return  # what is there is still true of the run that left it
        self.error = {"type": type(error).__name__, "message": " ".join(str(error).split())}
        self._write_beside_an_error()

    def _write_beside_an_error(self) -> None:
        # The error of the run matters more than that of the record (both fail when the disk is full).
        try:
            self._write()
        except OutputError as output_error:
            log.warning("%s", output_error)

    def _write(self) -> None:
        write_text_atomically(self.path, json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n")


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an interrupt is what began it: modules interrupted while being imported say ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
