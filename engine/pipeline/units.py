"""Units: members of a stage that one opened scorer scores together. Reads no weights until asked to score.

Members of one base on one machine are a unit: they share its sweep, whatever each is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member, group_bases, group_members
from strata.engine.pipeline.chunks import Pace, score_in_chunks
from strata.engine.pipeline.config import Pipeline, PipelineMember, Stage
from strata.engine.results.partial_scores import PartialScores
from strata.engine.scorer import Scorer
from strata.engine.types import Prompt, Question, QuestionScores


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
        before_last: called before its last chunk.
        rendered: told of the prompts that it scores.
    """

    questions: Sequence[Question]
    chosen: Sequence[str]
    source: str
    probe: bool
    resumes: bool
    before_last: Callable[[], None] = lambda: None
    rendered: Callable[[Sequence[Prompt]], None] = lambda prompts: None


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
        questions = asked.questions
        if scorer.waits_for_all:
            # What the others say is learned from: of the questions that are scored, and no others.
            wanted = set(asked.chosen)
            questions = [question for question in questions if question.id in wanted]
        prompts = scorer.render(questions, asked.source)
        folder = Path(session.folder) / "members" / unit.folder
        kept = PartialScores(folder, scorer.fingerprint(prompts))
        done = kept.read(questions) if asked.resumes else {}
        known = [done[name] for name in asked.chosen if name in done]
        yield known
        by_id = {prompt.question.id: prompt for prompt in prompts}
        asked.rendered([by_id[name] for name in asked.chosen])
        left = [by_id[name] for name in asked.chosen if name not in done]
        if left and asked.probe:
            scorer.check_known_answers(left)
        folder.mkdir(parents=True, exist_ok=True)
        kept.start(resume=asked.resumes)
        for rows in score_in_chunks(scorer, left, deadline, pace, asked.before_last):
            kept.add(rows)
            known = known + rows
            yield rows
        if scorer.waits_for_all:
            yield scorer.finish(known)
