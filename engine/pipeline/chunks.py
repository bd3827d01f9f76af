"""Scores as many questions, in their order, as the time allows; what comes next is planned after every chunk.

Flow: questions -> what a few of them are expected to cost -> the number of chunks (each a sweep, safe when it
ends) -> per chunk: as many questions as the time allows, going by how long those before took over what was
expected -> prompts -> scores. Nothing is rendered long before it is scored, and a chunk that is under way at
the deadline is given up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from strata.engine.deadline import SAFETY, Deadline, DeadlinePassedError
from strata.engine.jobs.job import Job
from strata.engine.plan.overrides import GroupGoal
from strata.engine.scorer import Scorer
from strata.engine.sweep.kept_states import Pending
from strata.engine.types import Prompt, Question, QuestionScores

SAMPLE = 64
"""Questions that are rendered to see what all cost."""
CHUNK_S = 600.0
"""What a crash may cost."""
CHUNKS_BEFORE_DEADLINE = 10
"""How finely the time that is left is used, and how soon the plan is corrected."""
LEAST_CHUNK_S = 1.0
TIGHT = 10.0
"""A prediction may be so far off; where the time left is not that much longer, chunks may be shorter."""
SLOWDOWN = 1.1
"""Chunks that each read the weights again may cost so much; beyond that they are fewer."""
SHRINKING = 0.95


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What questions cost: seconds of computing each, and of reading what every sweep reads anew."""

    question_s: float
    read_s: float = 0.0

    @classmethod
    def of(cls, job: Job) -> Cost:
        """The cost of questions like those of a planned job."""
        plan, num = job.describe(), len(job.prompts)
        if "resident_layers" not in plan:
            return cls(question_s=job.predicted_s / num)
        found: dict[str, Any] = dict(plan)
        streamed = 1 - len(found["resident_layers"]) / found["num_layers"]
        return cls(question_s=found["compute_s"] / num, read_s=streamed * found["read_s"])

    def seconds(self, num_questions: int) -> float:
        """Of a sweep of so many; the longer of computing and reading hides the other."""
        return max(self.read_s, num_questions * self.question_s)


@dataclass(kw_only=True)
class Pace:
    """How long work takes over what was expected, from the last chunk that is known."""

    factor: float = 1.0

    def note(self, seconds: float, expected_s: float) -> None:
        """Remembers a chunk."""
        self.factor = seconds / expected_s if expected_s > 0 else self.factor


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told of chunks: before the last one, as far as can be foreseen, and of the prompts of each."""

    before_last: Callable[[], None] = lambda: None
    rendered: Callable[[Sequence[Prompt]], None] = lambda prompts: None


def score_in_chunks(
    scorer: Scorer,
    questions: Sequence[Question],
    deadline: Deadline,
    pace: Pace,
    watch: Watch | None = None,
    pending: Pending | None = None,
) -> Generator[list[QuestionScores], None, None]:
    """Scores questions from the first on, until all are scored or no further one can be.

    Args:
        scorer: of the members.
        questions: the most important first. Where a question's scores depend on others', all are one chunk.
        deadline: nothing goes on after it.
        pace: of this machine so far; corrected as chunks end.
        watch: told of chunks.
        pending: the chunk that a killed run has left hidden states of, which is gone on with first.

    Yields:
        Scores as they are known, each question's once.
    """
    watch, left = watch or Watch(), _pending_first(questions, pending)
    if not left or deadline.left_s <= 0:
        return
    cost = expect_cost(scorer, left)
    size = len(left) if scorer.waits_for_all else chunk_size(cost, len(left), deadline)
    next_size = size if pending is None else len(pending.ids)
    while left and (num := _num_fitting(cost, min(next_size, len(left)), deadline, pace)):
        started, num_scored = perf_counter(), 0
        goal = None if pending is None else GroupGoal(least=pending.num_groups)
        pending = None
        prompts = scorer.render(left[:num])
        watch.rendered(prompts)
        job = scorer.prepare(prompts, goal)
        if num == len(left):
            watch.before_last()
        try:
            with closing(job.groups(deadline)) as groups:
                for rows in groups:
                    num_scored += len(rows)
                    yield rows
        except DeadlinePassedError:
            return
        if num_scored < num:
            return
        if goal is None:
            pace.note(perf_counter() - started, cost.seconds(num))
        left, next_size = left[num:], size


def _pending_first(questions: Sequence[Question], pending: Pending | None) -> list[Question]:
    """The questions, those of the pending chunk first and in its order."""
    if pending is None:
        return list(questions)
    by_id = {question.id: question for question in questions}
    first = [by_id.pop(name) for name in pending.ids]
    return first + list(by_id.values())


def expect_cost(scorer: Scorer, questions: Sequence[Question]) -> Cost:
    """What questions cost, going by a few of them that are evenly spread."""
    step = math.ceil(len(questions) / SAMPLE)
    return Cost.of(scorer.plan(questions[::step]))


def chunk_size(cost: Cost, num_questions: int, deadline: Deadline) -> int:
    """Questions a chunk: a chunk is short enough to lose, and many chunks are hardly slower than one."""
    whole_s = cost.seconds(num_questions)
    wanted = math.ceil(whole_s / CHUNK_S)
    if deadline.at_s is not None:
        is_tight = whole_s * TIGHT > deadline.left_s
        most = CHUNKS_BEFORE_DEADLINE if is_tight else int(whole_s / LEAST_CHUNK_S)
        wanted = max(wanted, min(CHUNKS_BEFORE_DEADLINE, most))
    num_chunks = max(1, min(wanted, num_questions))
    while num_chunks > 1:
        size = math.ceil(num_questions / num_chunks)
        if num_chunks * cost.seconds(size) <= SLOWDOWN * whole_s:
            return size
        num_chunks //= 2
    return num_questions


def _num_fitting(cost: Cost, num: int, deadline: Deadline, pace: Pace) -> int:
    """As many questions, `num` at most, as there is time for; 0 where not one fits."""
    while num:
        needed_s, left_s = SAFETY * pace.factor * cost.seconds(num), deadline.left_s
        if needed_s <= left_s:
            return num
        num = max(0, min(num - 1, int(SHRINKING * num * left_s / needed_s)))
    return 0
