"""The nodes of a Ray cluster as the place where a run is computed: one engine a node. See `Place`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from strata.engine import ray_cluster
from strata.engine.config import ScoreConfig
from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Job, Session
from strata.engine.plan.overrides import GroupGoal
from strata.engine.ray_cluster import check_nodes, collect, connect, disconnect, list_nodes, start_actor
from strata.engine.run.cluster.job import ClusterJob, NodeEngine, cut_batches
from strata.engine.run.cluster.worker import BatchWorker
from strata.engine.run.int8_check import sample_prompts
from strata.engine.types import Prompt

LONGEST_S = 1e9
"""What nodes are told is left where there is no deadline."""


class Cluster:
    """A context manager; engines start with it and end with it, the cluster stays. See `Place`.

    Args:
        config: the run's settings, its cluster's address among them.
        session: of the caller, for warnings, times and progress.

    Raises:
        InputError: Ray is not installed, no cluster is at the address, or it has no node to compute with.
    """

    def __init__(self, config: ScoreConfig, session: Session) -> None:
        assert config.cluster.ray is not None, "a run without --ray has no cluster"
        self._config, self._session = config, session
        self._connected_here = connect(config.cluster.ray)
        self._engines: list[NodeEngine] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal) -> ClusterJob:
        """Cuts prompts into batches, and asks a node what it would do with the first.

        Raises:
            InputError: what a node says of the members, such as too small a budget.
            OSError: a node has nothing free to compute with, or was lost.
        """
        engines = self._engines
        most, num_batches = self._config.cluster.ray_batch, len(engines) * (group_goal.most or 1)
        batches = cut_batches(prompts, most, num_batches)
        with self._session.timer.phase("plan"):
            # Every node opens the members now, so that what is wrong with one is told before the run begins.
            started = [engine.worker.start.remote() for engine in engines]
            collect(started, timeout_s=ray_cluster.START_TIMEOUT_S)
            first, *_ = collect([engine.worker.plan.remote(batches[0]) for engine in engines])
        return ClusterJob(
            prompts=prompts, batches=batches, engines=list(engines), first=first, session=self._session
        )

    def check(self, job: Job, deadline: Deadline) -> dict[str, object]:
        """The checks of every node's weights; run.json keeps the first node's account."""
        sample = sample_prompts(job.prompts, max(1, self._config.int8_check_questions))
        left_s = min(deadline.left_s, LONGEST_S)
        with self._session.timer.phase("probe"):
            first, *_ = collect([engine.worker.check.remote(sample, left_s) for engine in self._engines])
        return first

    def _start(self) -> None:
        nodes = list_nodes()
        check_nodes(nodes)
        num_on = Counter(node.host for node in nodes)
        members = self._config.members()
        for node in nodes:
            worker = start_actor(BatchWorker, node, self._config, members, num_on[node.host])
            self._engines.append(NodeEngine(node=node, worker=worker))

    def _end(self) -> None:
        workers = [engine.worker for engine in self._engines]
        disconnect(workers, connected_here=self._connected_here)
        self._engines, self._connected_here = [], False
