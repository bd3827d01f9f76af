"""Units: members of a stage that one opened scorer scores together. Reads no weights until asked to score.

Members of one base on one machine are a unit: they share its sweep, whatever each is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member, group_bases, group_members
from strata.engine.pipeline.chunks import Pace, Watch, score_in_chunks
from strata.engine.pipeline.config import Pipeline, PipelineMember, Stage
from strata.engine.results.partial_scores import PartialScores
from strata.engine.scorer import Scorer
from strata.engine.types import Question, QuestionScores

NUM_SAMPLED = 4
"""Questions that are rendered to tell whether they are asked as before, and to probe the weights."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Members of one stage that share a base.

    Attributes:
        stage: the stage's number, from 0.
        members: in the stage's order.
        machine: what they run on.
    """

    stage: int
    members: tuple[Member, ...]
    machine: MachineSettings

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members."""
        return tuple(member.name for member in self.members)

    @property
    def contexts(self) -> list[str]:
        """What their contexts are called, in order of first use."""
        return list(dict.fromkeys(member.context for member in self.members))

    @property
    def folder(self) -> str:
        """The name of the folder that keeps its scores."""
        return "+".join(self.names)


def units_of(pipeline: Pipeline, index: int) -> list[Unit]:
    """The units of a stage, in order of their first members.

    Raises:
        InputError: members that cannot be told apart.
    """
    stage: Stage = pipeline.stages[index]
    places: dict[MachineSettings, list[PipelineMember]] = {}
    for name in stage.members:
        member = pipeline.members[name]
        places.setdefault(member.machine, []).append(member)
    units = [
        Unit(stage=index, members=tuple(chain.from_iterable(groups)), machine=machine)
        for machine, members in places.items()
        for groups in group_bases(group_members([one.member for one in members]))
    ]
    return sorted(units, key=lambda unit: stage.members.index(unit.names[0]))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a unit is asked, and how.

    Attributes:
        questions: all, with their contexts.
        chosen: ids of those that it scores, the most important first.
        source: names the question file in messages.
        probe: first compute a layer of the real weights in two ways.
        resumes: go on with what an interrupted run has left.
        watch: told of chunks.
    """

    questions: Sequence[Question]
    chosen: Sequence[str]
    source: str
    probe: bool
    resumes: bool
    watch: Watch | None = None


def score_unit(
    unit: Unit, asked: Asked, session: Session, deadline: Deadline, pace: Pace
) -> Iterator[list[QuestionScores]]:
    """Scores what a unit is asked, as far as time allows; each group is safe on disk before it is handed on.

    Yields:
        First what an interrupted run has left of the chosen questions, then groups as they end, and once more
        all of them where they depend on each other.

    Raises:
        InputError: whatever is wrong with a member's files, or left-over scores of other settings.
    """
    with Scorer.open(unit.members, unit.machine, session=session) as scorer:
        by_id = {question.id: question for question in asked.questions}
        chosen = [by_id[name] for name in asked.chosen]
        folder = Path(session.folder) / "members" / unit.folder
        sample = scorer.render(asked.questions[:NUM_SAMPLED], asked.source)
        fingerprint = _fingerprint(unit, asked, scorer.fingerprint(sample))
        kept = PartialScores(folder, fingerprint)
        done = kept.read(asked.questions) if asked.resumes else {}
        known = [done[name] for name in asked.chosen if name in done]
        yield known
        left = [question for question in chosen if question.id not in done]
        if left and asked.probe:
            scorer.check_known_answers(sample)
        folder.mkdir(parents=True, exist_ok=True)
        kept.start(resume=asked.resumes)
        states = session.states
        ids = [question.id for question in left]
        states.open(folder / "states", fingerprint, ids if asked.resumes else None, session.warnings.say)
        with closing(score_in_chunks(scorer, left, deadline, pace, asked.watch, states.pending)) as scored:
            for rows in scored:
                kept.add(rows)
                known = known + rows
                yield rows
        if scorer.waits_for_all:
            yield scorer.finish(known)


def _fingerprint(unit: Unit, asked: Asked, of_sample: str) -> str:
    """A digest of all that decides scores: the questions, the members' settings, and how a few are asked.

    Args:
        unit: whose members.
        asked: whose questions.
        of_sample: the scorer's own digest, of weights and of the token ids of a few questions: it tells when
            a template, a tokenizer or a file has changed.
    """
    digest = hashlib.sha256(of_sample.encode())
    for member in unit.members:
        digest.update(repr(member).encode())
    for question in asked.questions:
        fields = (question.id, question.prompt, question.options, question.context, question.contexts)
        digest.update(json.dumps(fields).encode())
    return digest.hexdigest()
