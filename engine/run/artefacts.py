"""What a finished run leaves in its folder, and what it says of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from strata.engine.machine.devices import GIB
from strata.engine.results.tables import write_prompts, write_scores, write_submission
from strata.engine.scorer import ScoringJob
from strata.engine.types import QuestionScores, RunWarnings


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreRun:
    """What a run found: scores in the file's order, run.json's content, and the folder it left."""

    scores: list[QuestionScores]
    record: dict
    out: Path


def remove_artefacts(out: Path) -> None:
    """Removes what an earlier run left: a folder never holds artefacts of two runs."""
    for name in ("submission.csv", "scores.parquet", "report.html", "prompts.jsonl"):
        (out / name).unlink(missing_ok=True)


def _write_artefacts(job: ScoringJob, scores: list[QuestionScores]) -> None:
    out = job.config.out
    write_submission(out / "submission.csv", scores)
    write_scores(out / "scores.parquet", scores)
    if job.config.save_prompts:
        write_prompts(out / "prompts.jsonl", job.all_prompts)


LIBRARY_BYTES = 128 << 20
"""What libraries take in a run's first second (thread pools, GEMM kernels), not part of the budget."""


def _report_memory(job: ScoringJob, measured: Mapping[str, object], warnings: RunWarnings) -> None:
    taken, allowed = measured["memory_bytes"], min(job.budgets.device_bytes, job.budgets.host_bytes)
    assert isinstance(taken, int)
    if job.plan.devices[0] == "cpu" and taken > allowed + LIBRARY_BYTES:
        warnings.say(
            f"the run took {taken / GIB:.2f} GiB beyond its start; its budget was {allowed / GIB:.2f} GiB"
        )
