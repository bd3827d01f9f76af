"""Decoder members of one base that are asked different prompts: one sweep, each layer read once for all.

Flow: each group of members renders its prompts and has a tree of its own -> one plan for all trees -> a sweep
that takes each layer through all of them -> each group's head reads its readouts -> what all groups have said
of a question is averaged. See `OpenMembers`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from strata.engine.deadline import Deadline
from strata.engine.jobs.decoder_job import DecoderJob
from strata.engine.jobs.decoder_members import DecoderMembers
from strata.engine.jobs.ensemble_job import (
    EnsembleMembers,
    average_of_parts,
    join_measured,
    part_of,
)
from strata.engine.jobs.job import Measured
from strata.engine.machine.machine import Machine
from strata.engine.machine.roofline import RooflineProbe
from strata.engine.plan.overrides import GroupGoal
from strata.engine.plan.sweep_job import PlanRequest, plan_sweep_jobs
from strata.engine.progress import progress_bar
from strata.engine.sweep.sweep import run_sweeps
from strata.engine.types import Prompt, QuestionScores


class SharedSweepMembers(EnsembleMembers):
    """Opened groups of members of one base; `parts` are all decoder members on one open model."""

    parts: Sequence[DecoderMembers]

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal) -> SharedSweepJob:  # type: ignore[override]
        """Plans one sweep of all groups' prompts."""
        asked = [part_of(prompts, index) for index in range(len(self.parts))]
        askings = [part.ask(own) for part, own in zip(self.parts, asked, strict=True)]
        first = self.parts[0]
        request = PlanRequest(machine=first.machine, overrides=first.session.overrides, group_goal=group_goal)
        sweeps = plan_sweep_jobs(askings, request)
        jobs = [part.job_of(own, sweep) for part, own, sweep in zip(self.parts, asked, sweeps, strict=True)]
        return SharedSweepJob(opened=self, prompts=prompts, jobs=jobs)

    def close(self) -> None:
        """Closes the model; whichever group is asked, it is the same."""
        self.parts[0].close()


@dataclass(kw_only=True, eq=False)
class SharedSweepJob:
    """Jobs that one sweep does, on which `probe` looks. See `Job`."""

    opened: SharedSweepMembers
    prompts: Sequence[Prompt]
    jobs: Sequence[DecoderJob]
    bytes_read: int = 0
    probe: RooflineProbe | None = None
    _heard: dict[str, dict[int, QuestionScores]] = field(default_factory=dict)

    @property
    def machine(self) -> Machine:
        """What it runs on."""
        return self.jobs[0].machine

    @property
    def predicted_s(self) -> float:
        """Seconds of the sweep."""
        return self.jobs[0].predicted_s

    def describe(self) -> dict[str, object]:
        """The plan of the sweep, and what differs between the groups of members."""
        plan = self.jobs[0].describe()
        parts = [job.describe() for job in self.jobs]
        differing = {
            key: [part.get(key) for part in parts]
            for key in ("head", "template", "trie_nodes", "tokens_per_option_run", "num_micro_batches")
        }
        return plan | differing | {"members": list(self.opened.members), "shared_sweep": True}

    def groups(self, deadline: Deadline) -> Generator[list[QuestionScores], None, None]:
        """Sweeps group after group; a question is handed on when all have scored it.

        After the last group those are handed on that only some have reached before the deadline.
        """
        first = self.opened.parts[0]
        session, reader = first.session, first.model.reader
        before = reader.num_bytes_read
        first.verify()
        num_layers = first.model.checkpoint.num_layers
        tokens = [job.sweep.tree.num_tokens * len(job.opened.members) for job in self.jobs]
        probe = self.probe = self.jobs[0].begin_probe()
        with progress_bar("sweep", sum(tokens) * num_layers, shown=session.shows_progress) as advance:
            guarded = probe.beside(deadline.guard(advance))
            track = session.timeline.begin(", ".join(self.opened.members))
            planned, ids = [job.sweep for job in self.jobs], [prompt.question.id for prompt in self.prompts]
            sweeps = run_sweeps(
                planned,
                session.folder,
                guarded,
                track=track,
                keeper=session.states.begin(planned, ids),
            )
            swept = session.timer.each("sweep", sweeps)
            with closing(swept):
                for groups in swept:
                    with session.timer.phase("heads"):
                        rows = [job.take(group) for job, group in zip(self.jobs, groups, strict=True)]
                    self.bytes_read = reader.num_bytes_read - before
                    yield self._hear(rows)
                    if not deadline.allows(groups[0].seconds):
                        break
        with session.timer.phase("roofline"):
            probe.sample_after()
        if self._heard:
            yield [self._average(heard) for heard in self._heard.values()]

    def measure(self) -> Measured:
        """What the sweep took."""
        plan, parts = self.jobs[0].sweep.plan, [job.measure() for job in self.jobs]
        found = join_measured(parts, parts[-1].num_questions)
        return replace(
            found,
            bytes_read=self.bytes_read,
            flops=plan.flops * found.tokens_computed / plan.tokens,
            # One base is read and verified for all, and the first job tells how long its sweep has waited.
            weight_stream=parts[0].weight_stream,
            roofline=None if self.probe is None else self.probe.seen,
        )

    def _hear(self, rows: Sequence[Sequence[QuestionScores]]) -> list[QuestionScores]:
        """Takes down what each group of members says; returns the questions of which all have spoken."""
        for index, said in enumerate(rows):
            for row in said:
                self._heard.setdefault(row.question.id, {})[index] = row
        complete = [name for name, heard in self._heard.items() if len(heard) == len(self.jobs)]
        return [self._average(self._heard.pop(name)) for name in complete]

    def _average(self, heard: dict[int, QuestionScores]) -> QuestionScores:
        said = [heard.get(index) for index in range(len(self.jobs))]
        return average_of_parts(self.opened.parts, said)
