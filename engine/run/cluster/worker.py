"""The engine of one node of a cluster: opens the members there, and scores batches of prompts.

Runs as a Ray actor. Prompts come rendered, so that a question is asked the same whichever node scores it.
Knows nothing of question files, of the other nodes, or of Ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter

from strata.engine.config import ScoreConfig
from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Measured, Session
from strata.engine.machine.machine import Machine
from strata.engine.machine.shared_memory import divide_memory
from strata.engine.members.member import Member
from strata.engine.run.checks import check_weights
from strata.engine.scorer import Scorer
from strata.engine.types import Prompt, QuestionScores


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedBatch:
    """What a node would do with a batch, and what it would do it on."""

    plan: dict[str, object]
    predicted_s: float
    machine: Machine


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchScores:
    """What a node made of a batch: scores of its questions, what they took, and what is to be said of it."""

    rows: list[QuestionScores]
    measured: Measured
    seconds: float
    messages: tuple[str, ...]


class BatchWorker:
    """Scores batches on one node.

    Args:
        config: the run's settings; its output folder is not used.
        members: those that the run opens, few-shot examples read.
        num_engines: how many nodes are on this machine, which share its memory.
    """

    def __init__(self, config: ScoreConfig, members: Sequence[Member], num_engines: int) -> None:
        # The caller's folder may not be there: a hidden store on disk goes to this node's own.
        folder = Path(tempfile.gettempdir())
        machine = divide_memory(config.machine, num_engines)
        self._config = replace(config, out=folder, machine=machine)
        self._members = tuple(members)

    @cached_property
    def _scorer(self) -> Scorer:
        # Not in __init__: what is raised there reaches the caller as the death of the actor.
        session = Session(folder=self._config.out, overrides=self._config.plan)
        return Scorer.open(self._members, self._config.machine, session=session)

    def start(self) -> None:
        """Returns once this node has the actor running."""

    def plan(self, prompts: Sequence[Prompt]) -> PlannedBatch:
        """What `score` would do."""
        job = self._scorer.prepare(prompts)
        return PlannedBatch(plan=job.describe(), predicted_s=job.predicted_s, machine=job.machine)

    def check(self, prompts: Sequence[Prompt], left_s: float) -> dict[str, object]:
        """The probe of this node's weights, and the int8 check of these prompts, in the seconds left."""
        deadline = Deadline(at_s=perf_counter() + left_s)
        return check_weights(self._config, self._scorer, self._scorer.prepare(prompts), deadline)

    def score(self, prompts: Sequence[Prompt]) -> BatchScores:
        """Scores a batch in one sweep, or as many as the plan says."""
        started = perf_counter()
        job = self._scorer.prepare(prompts)
        rows = [row for group in job.groups(Deadline()) for row in group]
        return BatchScores(
            rows=rows,
            measured=job.measure(),
            seconds=perf_counter() - started,
            messages=tuple(self._scorer.session.warnings.messages),
        )
