"""Scores as many prompts, in their order, as the time allows; what comes next is planned after every chunk.

Flow: prompts -> the number of chunks (each a sweep that is safe when it ends) -> per chunk a plan, which is
made smaller until its predicted seconds, corrected by how the chunks before went, are left -> scores.
A chunk that is under way at the deadline is given up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from strata.engine.deadline import SAFETY, Deadline, DeadlinePassedError
from strata.engine.jobs.job import Job
from strata.engine.scorer import Scorer
from strata.engine.types import Prompt, QuestionScores

CHUNK_S = 600.0
"""What a crash may cost."""
CHUNKS_BEFORE_DEADLINE = 10
"""How finely the time that is left is used, and how soon the plan is corrected."""
LEAST_CHUNK_S = 1.0
SLOWDOWN = 1.1
"""Chunks that each read the weights again may cost so much; beyond that they are fewer."""
SHRINKING = 0.95


@dataclass(kw_only=True)
class Pace:
    """How long work takes over what was predicted, from the last chunk that is known."""

    factor: float = 1.0

    def note(self, seconds: float, predicted_s: float) -> None:
        """Remembers a chunk."""
        self.factor = seconds / predicted_s if predicted_s > 0 else self.factor

    def expect_s(self, job: Job) -> float:
        """Seconds that a job will take, with something to spare."""
        return SAFETY * self.factor * job.predicted_s


def score_in_chunks(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    deadline: Deadline,
    pace: Pace,
    before_last: Callable[[], None] = lambda: None,
) -> Iterator[list[QuestionScores]]:
    """Scores prompts from the first on, until all are scored or no further one can be.

    Args:
        scorer: rendered the prompts.
        prompts: the most important first.
        deadline: nothing goes on after it.
        pace: of this machine so far; corrected as chunks end.
        before_last: called before the last chunk is begun, as far as that can be foreseen.

    Yields:
        Scores as they are known, each prompt's once.
    """
    left = list(prompts)
    size = _chunk_size(scorer, left, deadline) if left else 0
    while left:
        job = _plan_fitting(scorer, left[:size], deadline, pace)
        if job is None:
            return
        if len(job.prompts) == len(left):
            before_last()
        started, num_scored = perf_counter(), 0
        try:
            for rows in job.groups(deadline):
                num_scored += len(rows)
                yield rows
        except DeadlinePassedError:
            return
        if num_scored < len(job.prompts):
            return
        pace.note(perf_counter() - started, job.predicted_s)
        left = left[num_scored:]


def _chunk_size(scorer: Scorer, prompts: Sequence[Prompt], deadline: Deadline) -> int:
    """Prompts a chunk: a chunk is short enough to lose, and many chunks are hardly slower than one."""
    whole_s = scorer.prepare(prompts).predicted_s
    wanted = math.ceil(whole_s / CHUNK_S)
    if deadline.at_s is not None:
        wanted = max(wanted, min(CHUNKS_BEFORE_DEADLINE, int(whole_s / LEAST_CHUNK_S)))
    num_chunks = max(1, min(wanted, len(prompts)))
    while num_chunks > 1:
        size = math.ceil(len(prompts) / num_chunks)
        if num_chunks * scorer.prepare(prompts[:size]).predicted_s <= SLOWDOWN * whole_s:
            return size
        num_chunks = num_chunks // 2
    return len(prompts)


def _plan_fitting(scorer: Scorer, prompts: Sequence[Prompt], deadline: Deadline, pace: Pace) -> Job | None:
    """The plan of as many of the first prompts as there is time for; None where not one fits."""
    num = len(prompts)
    while True:
        job = scorer.prepare(prompts[:num])
        needed_s, left_s = pace.expect_s(job), deadline.left_s
        if needed_s <= left_s:
            return job
        num = min(num - 1, int(SHRINKING * num * left_s / needed_s))
        if num < 1:
            return None
