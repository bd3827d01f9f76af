"""What a run says of its stages: questions chosen and reached, seconds, and what a stage gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from strata.engine.pipeline.scoreboard import Scoreboard
from strata.engine.questions.metrics import evaluate
from strata.engine.results.peak_memory import PeakMemory
from strata.engine.results.phases import PhaseTimer
from strata.engine.types import Question, QuestionScores


@dataclass(frozen=True, kw_only=True)
class StageAccount:
    """What a stage did.

    Attributes:
        name: of the stage.
        members: their names.
        num_questions: of the whole run.
        num_chosen: questions that its rule chose.
        num_reached: of these, scored by at least one member.
        num_changed: whose best option is another than before.
        seconds: of its searching, loading and computing.
        metrics: over all answered questions after it; None where no answer is known.
        chosen_before: metrics over its reached questions before it; None for the first stage too.
        chosen_after: the same after it.
    """

    name: str
    members: tuple[str, ...]
    num_questions: int
    num_chosen: int
    num_reached: int
    num_changed: int
    seconds: float
    metrics: Mapping[str, Any] | None
    chosen_before: Mapping[str, Any] | None
    chosen_after: Mapping[str, Any] | None

    @classmethod
    def of(
        cls,
        board: Scoreboard,
        index: int,
        *,
        chosen: Sequence[Question],
        before: Sequence[QuestionScores],
        seconds: float,
    ) -> StageAccount:
        """The account of a stage that has just ended.

        Args:
            board: with what it said.
            index: its number.
            chosen: its questions.
            before: the answers to all questions without it; empty for the first stage.
            seconds: what it took.
        """
        stage, after = board.pipeline.stages[index], board.answers(index)
        reached = {question.id for question in chosen if board.is_reached(question, index)}
        was = [row for row in before if row.question.id in reached]
        now = [row for row in after if row.question.id in reached]
        return cls(
            name=stage.name,
            members=stage.members,
            num_questions=len(board.questions),
            num_chosen=len(chosen),
            num_reached=len(reached),
            num_changed=sum(old.order[0] != new.order[0] for old, new in zip(was, now, strict=bool(was))),
            seconds=seconds,
            metrics=evaluate(after),
            chosen_before=evaluate(was),
            chosen_after=evaluate(now) if was else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """As run.json keeps it."""
        return asdict(self)


def account_of_run(timer: PhaseTimer, memory: PeakMemory, seconds: float) -> dict[str, Any]:
    """Seconds, by phase and in all, and the most memory."""
    return {
        "seconds": seconds,
        "seconds_by_phase": dict(timer.seconds),
        "peak_host_bytes": memory.peak_bytes,
        "baseline_host_bytes": memory.baseline_bytes,
        "memory_bytes": memory.peak_bytes - memory.baseline_bytes,
    }
