"""Chunks before a deadline, on a clock of our own: what fits is begun, what is slower corrects the plan."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from strata.engine.deadline import Deadline, DeadlinePassedError
from strata.engine.pipeline import chunks
from strata.engine.pipeline.chunks import Pace, score_in_chunks


class Clock:
    """A scorer whose jobs take `slowness` times what is expected: the reading, or a second a question."""

    def __init__(self, monkeypatch, *, fixed_s=0.0, slowness=1.0):
        self.now, self.fixed_s, self.slowness = 0.0, fixed_s, slowness
        self.sizes: list[int] = []
        monkeypatch.setattr(chunks, "perf_counter", lambda: self.now)
        monkeypatch.setattr("strata.engine.deadline.perf_counter", lambda: self.now)

    waits_for_all = False

    def render(self, questions):
        return questions

    def plan(self, questions):
        return self.prepare(questions)

    def prepare(self, prompts, group_goal=None):
        taken_s = self.slowness * max(self.fixed_s, len(prompts))

        def groups(deadline):
            self.sizes.append(len(prompts))
            advance = deadline.guard(lambda count: None)
            for _ in range(100):
                self.now += taken_s / 100
                advance(1)
            yield list(prompts)

        plan = {"compute_s": float(len(prompts)), "read_s": self.fixed_s}
        plan |= {"resident_layers": (), "num_layers": 1}
        return SimpleNamespace(prompts=prompts, describe=lambda: plan, groups=groups)

    def score(self, num_prompts, deadline_s=None, pace=None):
        deadline = Deadline(at_s=deadline_s, gives_up=True)
        scored = score_in_chunks(self, list(range(num_prompts)), deadline, pace or Pace())
        return [row for rows in scored for row in rows]


def test_without_a_deadline_a_short_job_is_one_chunk(monkeypatch):
    clock = Clock(monkeypatch)
    assert clock.score(500) == list(range(500))
    assert clock.sizes == [500]


def test_a_long_job_is_cut_into_what_may_be_lost(monkeypatch):
    clock = Clock(monkeypatch)
    assert clock.score(3000) == list(range(3000))
    assert max(clock.sizes) <= chunks.CHUNK_S


def test_chunks_that_each_read_the_weights_are_few(monkeypatch):
    clock = Clock(monkeypatch, fixed_s=1000.0)
    assert clock.score(3000) == list(range(3000))
    assert clock.now <= chunks.SLOWDOWN * 3000
    assert len(clock.sizes) <= 3


@pytest.mark.parametrize("slowness", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("fixed_s", [0.0, 5.0])
def test_a_deadline_is_kept_and_used(monkeypatch, slowness, fixed_s):
    clock = Clock(monkeypatch, fixed_s=fixed_s, slowness=slowness)
    scored = clock.score(3000, deadline_s=1000.0)
    assert scored == list(range(len(scored)))
    assert clock.now <= 1000.0 * 1.02
    assert len(scored) >= min(3000, 0.6 * 1000.0 / slowness), clock.sizes


def test_what_is_under_way_at_the_deadline_is_given_up(monkeypatch):
    clock = Clock(monkeypatch, slowness=30.0)
    assert clock.score(100, deadline_s=200.0) == []
    assert 200 <= clock.now <= 210


def test_a_pace_that_is_known_saves_the_first_try(monkeypatch):
    clock = Clock(monkeypatch, slowness=30.0)
    assert len(clock.score(100, deadline_s=200.0, pace=Pace(factor=30.0))) >= 5


def test_nothing_is_begun_that_cannot_end(monkeypatch):
    clock = Clock(monkeypatch, fixed_s=100.0)
    assert clock.score(10, deadline_s=50.0) == []
    assert clock.now == 0


def test_a_guard_gives_up_only_where_it_shall(monkeypatch):
    monkeypatch.setattr("strata.engine.deadline.perf_counter", lambda: 5.0)
    counted = []
    Deadline(at_s=1.0).guard(counted.append)(3)
    Deadline(at_s=9.0, gives_up=True).guard(counted.append)(4)
    assert counted == [3, 4]
    with pytest.raises(DeadlinePassedError):
        Deadline(at_s=1.0, gives_up=True).guard(counted.append)(5)
    assert Deadline().left_s == math.inf
