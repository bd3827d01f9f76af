"""The library: scores questions with an ensemble of members; writes no file, makes no folder, prints nothing.

    with Scorer.open([Member(model=Path("checkpoint"))]) as scorer:
        for row in scorer.score(questions):
            print(row.question.id, row.order)

Opening reads headers and plans nothing; layers that stay in memory are read by the first call and kept for
the next. Members of one model share a sweep, whatever they are asked; scores are averaged over all members.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from strata.engine.deadline import Deadline
from strata.engine.encoders.encoder import is_encoder
from strata.engine.jobs.continuation_job import ContinuationJob
from strata.engine.jobs.decoder_members import DecoderMembers
from strata.engine.jobs.ensemble_job import EnsembleMembers
from strata.engine.jobs.job import Job, KnownAnswer, OpenMembers, Session
from strata.engine.jobs.open_decoder import open_decoder_groups
from strata.engine.jobs.open_encoder import open_encoder_members
from strata.engine.jobs.shared_sweep import SharedSweepMembers
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member, group_bases, group_members
from strata.engine.model_files.opening import OPENING
from strata.engine.plan.overrides import GroupGoal
from strata.engine.questions.checked import check_questions
from strata.engine.results.notebook_table import ScoredQuestions
from strata.engine.types import InputError, Prompt, Question, QuestionScores
from strata.engine.weights.byte_sources import ByteSource, FileSource
from strata.engine.weights.read_cache import CachedSource


class Scorer:
    """Members, opened. Made by `Scorer.open`; a context manager, which gives memory and files back.

    Attributes:
        session: warnings so far, seconds by phase.
        source: where the bytes of checkpoints come from.
    """

    def __init__(self, opened: OpenMembers, session: Session, source: ByteSource) -> None:
        self._opened = opened
        self.session = session
        self.source = source

    @classmethod
    def open(
        cls,
        members: Sequence[Member],
        machine: MachineSettings | None = None,
        *,
        session: Session | None = None,
        source: ByteSource | None = None,
        profile: str | None = None,
        progress: bool = False,
    ) -> Scorer:
        """Opens an ensemble of members.

        Args:
            members: at least one; decoders and encoders alike.
            machine: devices, dtype and budgets; this machine's best by default.
            session: the caller's warnings, times and what of plans is fixed.
            source: where checkpoints' bytes come from; by default their files, through the cache folder that
                the machine settings name, if any.
            profile: plan for the machine of a profile instead of this one.
            progress: tell on stderr how far each call is; a session of the caller's says that itself.

        Raises:
            InputError: whatever is wrong with a member's files or settings, in one line.
        """
        settings = machine or MachineSettings()
        settings.check()
        session = session or Session(folder=Path(tempfile.gettempdir()), shows_progress=progress)
        session.overrides.check()
        if source is None:
            source = FileSource()
            if settings.cache_dir is not None:
                source = CachedSource(source, settings.cache_dir)
        opened: list[OpenMembers] = []
        for groups in group_bases(group_members(members)):
            with OPENING:
                if is_encoder(groups[0][0].model):
                    opened += [open_encoder_members(group, settings, session) for group in groups]
                    continue
                found = open_decoder_groups(groups, settings, session, source, profile)
            opened.append(found[0] if len(found) == 1 else SharedSweepMembers(found))
        return cls(opened[0] if len(opened) == 1 else EnsembleMembers(opened), session, source)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members."""
        return self._opened.members

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that head classify gives texts; empty for other heads."""
        return self._opened.label_names

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives memory and open files back."""
        self._opened.close()

    def score(self, questions: Sequence[Question]) -> ScoredQuestions:
        """Scores questions.

        Args:
            questions: with ids that differ.

        Returns:
            One entry a question, in order: a list, which a notebook shows as a table.

        Raises:
            InputError: questions that a member cannot be asked, or too small a budget.
            FloatingPointError: scores that are not finite even in float32.
        """
        questions = check_questions(questions)
        by_id = {row.question.id: row for rows in self.groups(questions) for row in rows}
        return ScoredQuestions(by_id[question.id] for question in questions)

    def groups(self, questions: Sequence[Question]) -> Iterator[list[QuestionScores]]:
        """Scores questions, and yields them as groups of them finish; raises as `score` does.

        Where a question's scores depend on the others' (debias pride), all come at the end.
        """
        if not questions:
            return
        groups = self.plan(questions).groups(Deadline())
        if self._opened.waits_for_all:
            yield self.finish([row for rows in groups for row in rows])
        else:
            yield from groups

    def plan(self, questions: Sequence[Question], group_goal: GroupGoal | None = None) -> Job:
        """What `score` would do: tokens, groups, seconds, bytes (`describe`). Reads no decoder's weights."""
        return self.prepare(self.render(questions), group_goal)

    def render(self, questions: Sequence[Question], source: str = "the questions") -> Sequence[Prompt]:
        """The prompts that members are given; `source` names the question file in messages."""
        checked = check_questions(questions)
        with self.session.timer.phase("tokenize"):
            return self._opened.render(checked, source)

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal | None = None) -> Job:
        """Plans the scoring of prompts, in groups as the goal says."""
        # An encoder is loaded as its first job is planned.
        with OPENING, self.session.timer.phase("plan"):
            return self._opened.prepare(prompts, group_goal or GroupGoal())

    def check_known_answers(self, prompts: Sequence[Prompt]) -> list[KnownAnswer]:
        """Probes each streamed model: the first layer of a prompt's beginning, computed in two ways.

        Raises:
            InputError: they differ by more than the compute dtype explains.
        """
        with OPENING:
            return self._opened.check_known_answers(prompts)

    @property
    def waits_for_all(self) -> bool:
        """Whether a question's scores depend on others', so that they are final only after `finish`."""
        return self._opened.waits_for_all

    def finish(self, rows: Sequence[QuestionScores]) -> list[QuestionScores]:
        """Scores that a job's groups gave, or an interrupted run has kept, as they are given all of them.

        They are the same but for debias pride, whose prior is learned from some of them. It may be called
        again with more.
        """
        return self._opened.finish(rows)

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """A digest of all that decides the scores of these prompts."""
        return self._opened.fingerprint(prompts)

    def with_texts(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """The prompts with each branch's text, for prompts.jsonl."""
        return self._opened.with_texts(prompts)

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations; equal prefixes are computed once.

        Args:
            pairs: (prefix, continuation) texts. Spaces that end a prefix belong to the continuation, and the
                continuation's tokens are those of prefix + continuation after as many as the prefix alone
                has, as in lm-evaluation-harness.

        Returns:
            For every pair, in order, the sum of the continuation's log-probabilities in nats, and whether
            each of its tokens is the most probable one.

        Raises:
            InputError: several members, an encoder, a pair without a token to predict, or one that is longer
                than the model's window.
        """
        return self.decoder.plan_texts(pairs).in_order()

    def plan_continuations(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> ContinuationJob:
        """Plans what `log_likelihoods` does, of token ids: for callers that tokenize by rules of their own.

        Args:
            pairs: (prefix, continuation), each with at least one id. Nothing is added, and nothing cut: of a
                pair, all tokens but the last have to fit the model's window.

        Returns:
            A job, whose `groups` are computed as they are asked for.

        Raises:
            InputError: several members, an encoder, ids that the model does not have, or too long a pair.
        """
        return self.decoder.plan_tokens(pairs)

    @property
    def decoder(self) -> DecoderMembers:
        """The one decoder member, opened: its tokenizer, config and window.

        Raises:
            InputError: there are others beside it, or it is an encoder.
        """
        if not isinstance(self._opened, DecoderMembers) or len(self.members) > 1:
            raise InputError("log-likelihoods: expected one decoder member, without others beside it")
        return self._opened
