"""A job that the nodes of a cluster do: batches of prompts, each scored by whichever node is free. See `Job`.

A batch whose node is lost goes to another; what a batch gave is taken once, when it is whole. So every
question is scored once, whatever happens to nodes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from strata.engine.deadline import Deadline
from strata.engine.jobs.ensemble_job import join_measured
from strata.engine.jobs.job import Measured, Session
from strata.engine.machine.machine import Machine
from strata.engine.progress import Advance, progress_bar
from strata.engine.ray_cluster import Node, lost_errors, one_line
from strata.engine.run.cluster.worker import BatchScores, PlannedBatch
from strata.engine.types import Prompt, QuestionScores

LOOK_EVERY_S = 1.0
"""How long Ray waits for batches before a signal is heard."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeEngine:
    """A node and Ray's handle of the `BatchWorker` that runs there."""

    node: Node
    worker: Any


@dataclass(kw_only=True, eq=False)
class ClusterJob:
    """Prompts in batches, and the engines that score them; `scored` are those done. See `Job`."""

    prompts: Sequence[Prompt]
    batches: Sequence[Sequence[Prompt]]
    engines: list[NodeEngine]
    first: PlannedBatch
    session: Session
    scored: list[tuple[Node, BatchScores]] = field(default_factory=list)

    @property
    def machine(self) -> Machine:
        """That of the first engine, with the devices of all."""
        devices = self.first.machine.devices * len(self.engines)
        return replace(self.first.machine, devices=devices)

    @property
    def predicted_s(self) -> float:
        """Seconds of as many batches as the first, as many at a time as there are engines."""
        return self.first.predicted_s * math.ceil(len(self.batches) / len(self.engines))

    def describe(self) -> dict[str, object]:
        """The plan of the first batch, and how many there are."""
        shared = {
            "nodes": [engine.node.host for engine in self.engines],
            "num_batches": len(self.batches),
            "batch_questions": len(self.batches[0]),
        }
        return {**self.first.plan, "cluster": shared}

    def groups(self, deadline: Deadline) -> Generator[list[QuestionScores], None, None]:
        """Scores of batches as they come, in any order; see `Job`.

        Raises:
            OSError: all nodes were lost.
        """
        with progress_bar("score", len(self.prompts), shown=self.session.shows_progress) as advance:
            yield from self.session.timer.each("sweep", self._batches_done(deadline, advance))

    def measure(self) -> Measured:
        """What all batches took together, on all nodes."""
        found = [batch.measured for _, batch in self.scored]
        return join_measured(found, sum(one.num_questions for one in found))

    def _batches_done(self, deadline: Deadline, advance: Advance) -> Iterator[list[QuestionScores]]:
        waiting, idle = deque(self.batches), list(self.engines)
        running: dict[Any, tuple[NodeEngine, Sequence[Prompt]]] = {}
        while waiting or running:
            while waiting and idle and deadline.allows(self._longest_s):
                engine, batch = idle.pop(), waiting.popleft()
                running[engine.worker.score.remote(batch)] = (engine, batch)
            if not running:
                return
            for reference in _wait(list(running)):
                engine, batch = running.pop(reference)
                scored = self._take(reference, engine)
                if scored is None:
                    waiting.appendleft(batch)
                    continue
                idle.append(engine)
                advance(len(batch))
                yield scored.rows

    @property
    def _longest_s(self) -> float:
        return max((batch.seconds for _, batch in self.scored), default=self.first.predicted_s)

    def _take(self, reference: Any, engine: NodeEngine) -> BatchScores | None:
        """A batch that ended; None where its node was lost with it."""
        found = _get(reference)
        if isinstance(found, lost_errors()):
            self._leave(engine, one_line(found))
            return None
        if isinstance(found, Exception):
            raise found
        scored: BatchScores = found
        self.scored.append((engine.node, scored))
        for message in scored.messages:
            self.session.warnings.say(message)
        return scored

    def _leave(self, engine: NodeEngine, why: str) -> None:
        self.engines.remove(engine)
        if not self.engines:
            raise OSError(f"all nodes of the Ray cluster were lost ({why}); --resume keeps finished batches")
        self.session.warnings.say(
            f"a node of the Ray cluster ({engine.node.host}) was lost, and its batch scored by another: {why}"
        )


def cut_batches(prompts: Sequence[Prompt], most: int, num_batches: int) -> list[Sequence[Prompt]]:
    """Prompts in batches of nearly one size, in order: at least `num_batches`, none longer than `most`."""
    num = min(len(prompts), max(num_batches, math.ceil(len(prompts) / most)))
    ends = [len(prompts) * number // num for number in range(num + 1)]
    return [prompts[start:end] for start, end in pairwise(ends)]


def _wait(references: list[Any]) -> list[Any]:
    """Those that are ready, at least one; a signal is heard meanwhile."""
    import ray

    ready: list[Any] = []
    while not ready:
        ready, _ = ray.wait(references, num_returns=1, timeout=LOOK_EVERY_S)
    return ready


def _get(reference: Any) -> Any:
    """What a worker returned, or the exception that it raised, or that Ray raises of a lost one."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Its own message is the worker's traceback.
        return error.cause
    except lost_errors() as error:
        return error
