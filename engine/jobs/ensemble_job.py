"""Members of several models as one: run one model after the other, their scores averaged. See `OpenMembers`.

Until the last model runs, no question is fully known; then its groups are handed on as they end, averaged
with what the others said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from strata.engine.deadline import Deadline
from strata.engine.ensembles.named_scores import scores_of_member
from strata.engine.jobs.job import (
    Job,
    KnownAnswer,
    Measured,
    OpenMembers,
    PrefixSharing,
    WeightStream,
)
from strata.engine.machine.machine import Machine
from strata.engine.machine.roofline import join_seen
from strata.engine.members.ensemble import average_heard
from strata.engine.members.labels import check_shared
from strata.engine.plan.overrides import GroupGoal
from strata.engine.types import Prompt, Question, QuestionScores


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsemblePrompt(Prompt):
    """A question as each model is asked it; its branches are those of all."""

    parts: tuple[Prompt, ...]


@dataclass(eq=False)
class EnsembleMembers:
    """Opened members of several models."""

    parts: Sequence[OpenMembers]

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all."""
        return tuple(name for part in self.parts for name in part.members)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels of all models, in the order of the first.

        Raises:
            InputError: models whose labels differ by more than their order.
        """
        names = [part.label_names for part in self.parts]
        check_shared(names)
        return names[0]

    def render(self, questions: Sequence[Question], source: str) -> list[EnsemblePrompt]:
        """The prompts of every model, question by question."""
        rendered = [part.render(questions, source) for part in self.parts]
        return [
            EnsemblePrompt(
                question=question,
                branches=tuple(branch for prompt in prompts for branch in prompt.branches),
                num_truncated_tokens=sum(prompt.num_truncated_tokens for prompt in prompts),
                parts=tuple(prompts),
            )
            for question, *prompts in zip(questions, *rendered, strict=True)
        ]

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """A digest of those of the models."""
        digests = [part.fingerprint(part_of(prompts, index)) for index, part in enumerate(self.parts)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal) -> EnsembleJob:
        """Plans every model's job."""
        jobs = [part.prepare(part_of(prompts, n), group_goal) for n, part in enumerate(self.parts)]
        return EnsembleJob(opened=self, prompts=prompts, jobs=jobs)

    @property
    def waits_for_all(self) -> bool:
        """Whether some model's do."""
        return any(part.waits_for_all for part in self.parts)

    def finish(self, rows: Sequence[QuestionScores]) -> list[QuestionScores]:
        """Every model's, averaged again; see `OpenMembers`."""
        if not self.waits_for_all:
            return list(rows)
        found: list[dict[str, QuestionScores]] = [{} for _ in rows]
        for part in self.parts:
            # A deadline may have kept some of the models from a question.
            asked = [index for index, row in enumerate(rows) if part.members[0] in row.member_scores]
            for name, finished in finish_members(part, [rows[index] for index in asked]).items():
                for index, row in zip(asked, finished, strict=True):
                    found[index][name] = row
        return [average_heard(by_member) for by_member in found]

    def check_known_answers(self, prompts: Sequence[Prompt]) -> list[KnownAnswer]:
        """Those of all models."""
        return [
            answer
            for index, part in enumerate(self.parts)
            for answer in part.check_known_answers(part_of(prompts, index))
        ]

    def with_texts(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """The prompts of all models, one model after the other."""
        for index, part in enumerate(self.parts):
            yield from part.with_texts(part_of(prompts, index))

    def close(self) -> None:
        """Closes every model."""
        for part in self.parts:
            part.close()


def finish_members(part: OpenMembers, rows: Sequence[QuestionScores]) -> dict[str, list[QuestionScores]]:
    """What each member of a model says of questions that it has scored, by its name."""
    if len(part.members) > 1:
        finished = part.finish(rows)
        return {name: [scores_of_member(row, name) for row in finished] for name in part.members}
    (name,) = part.members
    return {name: part.finish([scores_of_member(row, name) for row in rows])}


def parts_of(prompt: Prompt) -> tuple[Prompt, ...]:
    """What each model is asked; a prompt of one model is its own only part."""
    if not isinstance(prompt, EnsemblePrompt):
        return (prompt,)
    return tuple(part for inner in prompt.parts for part in parts_of(inner))


def part_of(prompts: Sequence[Prompt], index: int) -> list[Prompt]:
    """What one of the models is asked."""
    return [prompt.parts[index] for prompt in prompts if isinstance(prompt, EnsemblePrompt)]


@dataclass(kw_only=True, eq=False)
class EnsembleJob:
    """The jobs of several models on the same questions. See `Job`."""

    opened: EnsembleMembers
    prompts: Sequence[Prompt]
    jobs: Sequence[Job]

    @property
    def machine(self) -> Machine:
        """What the first of them runs on."""
        return self.jobs[0].machine

    @property
    def predicted_s(self) -> float:
        """Seconds of all, one after the other."""
        return sum(job.predicted_s for job in self.jobs)

    def describe(self) -> dict[str, object]:
        """The plan of each model."""
        return {"members": list(self.opened.members), "parts": [job.describe() for job in self.jobs]}

    def groups(self, deadline: Deadline) -> Generator[list[QuestionScores], None, None]:
        """The last model's groups, averaged with what the others said of the same questions."""
        *earlier, last = self.jobs
        known = [{row.question.id: row for rows in job.groups(deadline) for row in rows} for job in earlier]
        with closing(last.groups(deadline)) as groups:
            for rows in groups:
                yield [self._average(row, known) for row in rows]

    def measure(self) -> Measured:
        """What all took together."""
        found = [job.measure() for job in self.jobs]
        return join_measured(found, found[-1].num_questions)

    def _average(self, last: QuestionScores, known: Sequence[dict[str, QuestionScores]]) -> QuestionScores:
        rows = [*(scores.get(last.question.id) for scores in known), last]
        return average_of_parts(self.opened.parts, rows)


def average_of_parts(parts: Sequence[OpenMembers], rows: Sequence[QuestionScores | None]) -> QuestionScores:
    """What members say of a question on average: each counts once, whichever part it belongs to.

    Args:
        parts: opened members.
        rows: what each part says; None for one that a deadline cut off, which does not count.
    """
    by_member: dict[str, QuestionScores] = {}
    for part, row in zip(parts, rows, strict=True):
        if row is None:
            continue
        for name in part.members:
            by_member[name] = scores_of_member(row, name) if len(part.members) > 1 else row
    return average_heard(by_member)


def join_measured(found: Sequence[Measured], num_questions: int) -> Measured:
    """What several jobs took together; nothing where a deadline let none begin.

    Args:
        found: what each took.
        num_questions: scored by all of them.
    """
    return Measured(
        num_questions=num_questions,
        tokens_computed=sum(one.tokens_computed for one in found),
        flops=sum(one.flops for one in found),
        bytes_read=sum(one.bytes_read for one in found),
        float32_micro_batches=sum(one.float32_micro_batches for one in found),
        overflow="; ".join(one.overflow for one in found if one.overflow),
        halved_micro_batches=sum(one.halved_micro_batches for one in found),
        halving="; ".join(one.halving for one in found if one.halving),
        prefix_sharing=join_sharing([one.prefix_sharing for one in found]),
        weight_stream=_join_streams([one.weight_stream for one in found]),
        roofline=join_seen([(one.flops, one.roofline) for one in found]),
    )


def join_sharing(found: Sequence[PrefixSharing | None]) -> PrefixSharing | None:
    """What several trees save; None where one of the jobs has none."""
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    return PrefixSharing(
        trie_nodes=sum(one.trie_nodes for one in known),
        tokens_per_option_run=sum(one.tokens_per_option_run for one in known),
    )


def _join_streams(found: Sequence[WeightStream | None]) -> WeightStream | None:
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    return WeightStream(
        weights_wait_s=sum(one.weights_wait_s for one in known),
        weights_read_s=sum(one.weights_read_s for one in known),
        bytes_verified=sum(one.bytes_verified for one in known),
    )
