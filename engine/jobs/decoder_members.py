"""Decoder members that share one checkpoint and their prompts, opened: they render, plan, and are closed.

Flow: Member settings -> checkpoint headers, adapters, head, template, machine (`open_decoder_groups`) ->
prompts (`render`) -> scored tree and sweep (`prepare`): a `DecoderJob`. Opening and planning read no weights;
whatever is wrong with the input is found there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from transformers import PreTrainedTokenizerBase

from strata.engine.adapters.lora import Adapter
from strata.engine.heads.continuation import CONTINUATION
from strata.engine.heads.head import Head
from strata.engine.jobs.continuation_job import ContinuationJob
from strata.engine.jobs.decoder_job import DecoderJob
from strata.engine.jobs.decoder_notices import warn_of_plan
from strata.engine.jobs.identity import identify_members
from strata.engine.jobs.job import KnownAnswer, Session
from strata.engine.jobs.known_answer import check_known_answer
from strata.engine.machine.machine import Machine
from strata.engine.members.cut import Cut
from strata.engine.members.ensemble import finish_each
from strata.engine.members.member import Member
from strata.engine.members.readings import MemberCosts
from strata.engine.model.embedding import check_token_ids
from strata.engine.model.open_model import OpenModel
from strata.engine.plan.overrides import GroupGoal
from strata.engine.plan.sweep_job import Asking, PlanRequest, SweepJob, plan_sweep_jobs
from strata.engine.prompts.continuations import render_continuations, render_token_continuations
from strata.engine.prompts.render import PromptSettings, render_prompts
from strata.engine.prompts.texts import check_known_labels, render_texts
from strata.engine.prompts.tokenizer import read_tokenizer
from strata.engine.results.partial_scores import fingerprint_job
from strata.engine.tree.targets import TargetTable, build_scored_tree
from strata.engine.types import Prompt, Question, QuestionScores


@dataclass(kw_only=True, eq=False)
class DecoderMembers:
    """Members of one decoder, opened; see `open_decoder_members`.

    Attributes:
        settings: the members as the user names them.
        dtype: `--dtype` as given, which decides scores.
        adapters: the members' adapters, none for the base model alone.
        head: what scores their readouts.
        prompting: template and bounds of their prompts.
        machine: what they run on.
        model: the modules.
        session: of the caller.
        cut: where the sweep ends.
        labels: the names of each member's labels, for head classify; empty for others.
        is_verified: embedding and projection have been checked whole.
    """

    settings: tuple[Member, ...]
    dtype: str
    adapters: tuple[Adapter, ...]
    head: Head
    prompting: PromptSettings
    machine: Machine
    model: OpenModel
    session: Session
    cut: Cut
    labels: tuple[tuple[str, ...], ...] = ()
    is_verified: bool = True

    @property
    def members(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(member.name for member in self.model.members)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels that texts may get, as the first member has them."""
        return self.labels[0] if self.labels else ()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's, read when it is first needed.

        Raises:
            InputError: there is none that transformers can read.
        """
        return read_tokenizer(self.settings[0].model)

    def render(self, questions: Sequence[Question], source: str) -> list[Prompt]:
        """The prompts of questions; see `OpenMembers`."""
        prompts = self._render(self.settings[0].read(questions), source)
        check_token_ids(self.model.checkpoint, prompts)
        return prompts

    def _render(self, questions: Sequence[Question], source: str) -> list[Prompt]:
        settings, tokenizer, warnings = self.prompting, self.tokenizer, self.session.warnings
        if not self.labels:
            return render_prompts(questions, settings, tokenizer, warnings, source=source)
        check_known_labels(questions, self.labels[0], source)
        pad = getattr(self.model.checkpoint.config, "pad_token_id", None)
        return render_texts(questions, settings, tokenizer, warnings, pad_token_id=pad, source=source)

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """A digest of all that decides the scores; see `OpenMembers`."""
        first, template = self.settings[0], self.prompting.template.name
        cut = () if self.cut.is_whole else (self.cut,)
        debias = (first.debias, first.debiasing)
        apart = ("deterministic",) if self.session.overrides.deterministic else ()
        settings = (
            self.head.name,
            first.normalize,
            template,
            self.dtype,
            *debias,
            *self.labels,
            *cut,
            *apart,
        )
        return fingerprint_job(prompts, (*settings, *identify_members(self.settings)))

    def ask(self, prompts: Sequence[Prompt]) -> Asking:
        """The tree of prompts, for a plan."""
        scored_tree = build_scored_tree(prompts, apart=self.session.overrides.deterministic)
        normalized = self._is_normalized(scored_tree.targets)
        costs = MemberCosts(
            checkpoint=self.model.checkpoint, adapter=self.adapters[0] if self.adapters else None
        )

        def head_bytes(targets: TargetTable) -> int:
            return len(self.members) * self.head.bytes_read(targets, costs, normalized=normalized)

        return Asking(model=self.model, scored_tree=scored_tree, head_bytes=head_bytes)

    def _is_normalized(self, targets: TargetTable) -> bool:
        return self.session.overrides.deterministic or self.head.normalizes(targets)

    def job_of(self, prompts: Sequence[Prompt], sweep: SweepJob) -> DecoderJob:
        """The job that a planned sweep of prompts is."""
        warn_of_plan(sweep, self.session)
        normalized = self._is_normalized(sweep.scored_tree.targets)
        return DecoderJob(opened=self, prompts=prompts, sweep=sweep, normalized=normalized)

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal) -> DecoderJob:
        """Plans a sweep; see `OpenMembers`."""
        request = PlanRequest(machine=self.machine, overrides=self.session.overrides, group_goal=group_goal)
        (sweep,) = plan_sweep_jobs([self.ask(prompts)], request)
        return self.job_of(prompts, sweep)

    @property
    def waits_for_all(self) -> bool:
        """Whether the way to debias does."""
        debias = self.prompting.debias
        return debias.waits_for_all and debias.suits(self.head)

    def finish(self, rows: Sequence[QuestionScores]) -> list[QuestionScores]:
        """What the way to debias makes of each member's; see `OpenMembers`."""
        finish = partial(self.prompting.debias.finish, warnings=self.session.warnings)
        return finish_each(self.members, rows, finish) if self.waits_for_all else list(rows)

    def check_known_answers(self, prompts: Sequence[Prompt]) -> list[KnownAnswer]:
        """The probe of the first prompt; see `OpenMembers`."""
        folder = self.session.folder
        with self.session.timer.phase("probe"):
            found = check_known_answer(self.model, self.machine, self.adapters, prompts[0], folder)
        return [] if found is None else [found]

    def with_texts(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """The prompts, whose branches have their texts already."""
        return iter(prompts)

    def plan_texts(self, pairs: Sequence[tuple[str, str]]) -> ContinuationJob:
        """Plans the log-likelihoods of (prefix, continuation) texts; see `Scorer.log_likelihoods`."""
        return self._plan(render_continuations(pairs, self.tokenizer, window=self.prompting.window))

    def plan_tokens(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> ContinuationJob:
        """Plans those of token ids; see `Scorer.plan_continuations`."""
        return self._plan(render_token_continuations(pairs, window=self.prompting.window))

    def _plan(self, prompts: Sequence[Prompt]) -> ContinuationJob:
        if not prompts:
            return ContinuationJob(job=None)
        check_token_ids(self.model.checkpoint, prompts)
        asked = replace(self, head=CONTINUATION)
        return ContinuationJob(job=asked.prepare(prompts, GroupGoal()))

    def close(self) -> None:
        """Lets go of resident layers and closes the weight files."""
        self.model.release()
        self.model.reader.close()

    def verify(self) -> None:
        """Checks embedding and projection whole, once: of these, a job reads some rows only."""
        if self.is_verified:
            return
        checkpoint = self.model.checkpoint
        with self.session.timer.phase("verify"):
            for name in ("embed_tokens.weight", checkpoint.output_embedding):
                if name is not None:
                    self.model.reader.verify(checkpoint.require_rows(name).tensor)
        self.is_verified = True
