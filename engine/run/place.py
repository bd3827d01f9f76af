"""Where a run is computed: on this machine, or by a cluster (`cluster/`). Knows nothing of output folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from strata.engine.config import ScoreConfig
from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Job
from strata.engine.plan.overrides import GroupGoal
from strata.engine.run.checks import check_weights
from strata.engine.run.cluster.cluster import Cluster
from strata.engine.scorer import Scorer
from strata.engine.types import Prompt


class Place(Protocol):
    """Prepares the scoring of prompts, and checks beforehand what can be known."""

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal) -> Job:
        """Plans the scoring of prompts that are rendered; see `Scorer.prepare`."""
        ...

    def check(self, job: Job, deadline: Deadline) -> dict[str, object]:
        """What run.json keeps of the probe of the weights and of the int8 check of a job to come.

        Raises:
            InputError: weights give other readouts than an independent computation.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ThisMachine:
    """The scorer that also renders the prompts. See `Place`."""

    config: ScoreConfig
    scorer: Scorer

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal) -> Job:
        """What the scorer prepares."""
        return self.scorer.prepare(prompts, group_goal)

    def check(self, job: Job, deadline: Deadline) -> dict[str, object]:
        """The checks of the scorer's weights."""
        return check_weights(self.config, self.scorer, job, deadline)


@contextmanager
def open_place(config: ScoreConfig, scorer: Scorer) -> Iterator[Place]:
    """Where a run with these settings is computed; what a cluster was given is taken back with the block.

    Raises:
        InputError: no cluster at the address, or a node that cannot open the members.
        OSError: a node has nothing free to compute with, or was lost.
    """
    if config.cluster.ray is None:
        yield ThisMachine(config=config, scorer=scorer)
        return
    with Cluster(config, scorer.session) as cluster:
        yield cluster
