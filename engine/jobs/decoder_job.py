"""Decoder members that share one checkpoint: opened, asked, planned, swept, and their heads read.

Flow: Member settings -> checkpoint headers, adapters, head, template, machine (`open_decoder_members`) ->
prompts (`render`) -> scored tree and sweep (`prepare`) -> readouts of a group -> scores of the questions that
it completes (`DecoderJob.groups`). Opening and planning read no weights; whatever is wrong with the input is
found there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from strata.engine.adapters.lora import Adapter
from strata.engine.deadline import Deadline
from strata.engine.heads.continuation import CONTINUATION, IS_GREEDY
from strata.engine.heads.head import Head
from strata.engine.heads.loglik import describe_head
from strata.engine.jobs.decoder_notices import warn_of_plan
from strata.engine.jobs.decoder_scores import MemberHeads
from strata.engine.jobs.describe import (
    describe_halvings,
    describe_not_finite,
    describe_overflows,
    ids_of_readouts,
)
from strata.engine.jobs.identity import identify_members
from strata.engine.jobs.job import KnownAnswer, Measured, PrefixSharing, Session, WeightStream
from strata.engine.jobs.known_answer import check_known_answer
from strata.engine.machine.machine import Machine
from strata.engine.members.cut import Cut
from strata.engine.members.member import Member
from strata.engine.members.readings import MemberCosts
from strata.engine.model.embedding import check_token_ids
from strata.engine.model.open_model import OpenModel
from strata.engine.plan.overrides import GroupGoal
from strata.engine.plan.sweep_job import PlanRequest, SweepJob, plan_sweep_job
from strata.engine.progress import progress_bar
from strata.engine.prompts.continuations import render_continuations
from strata.engine.prompts.render import PromptSettings, render_prompts
from strata.engine.prompts.texts import check_known_labels, render_texts
from strata.engine.prompts.tokenizer import read_tokenizer
from strata.engine.results.partial_scores import fingerprint_job
from strata.engine.sweep.lane_worker import ReadoutsNotFiniteError
from strata.engine.sweep.sweep import Advance, SweptGroup, run_sweep
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
        apart = ("deterministic",) if self.session.overrides.deterministic else ()
        settings = (self.head.name, first.normalize, template, self.dtype, *self.labels, *cut, *apart)
        return fingerprint_job(prompts, (*settings, *identify_members(self.settings)))

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal) -> DecoderJob:
        """Plans a sweep; see `OpenMembers`."""
        apart = self.session.overrides.deterministic
        scored_tree = build_scored_tree(prompts, apart=apart)
        normalized = apart or self.head.normalizes(scored_tree.targets)
        costs = MemberCosts(
            checkpoint=self.model.checkpoint, adapter=self.adapters[0] if self.adapters else None
        )

        def head_bytes(targets: TargetTable) -> int:
            return len(self.members) * self.head.bytes_read(targets, costs, normalized=normalized)

        request = PlanRequest(machine=self.machine, overrides=self.session.overrides, group_goal=group_goal)
        sweep = plan_sweep_job(self.model, scored_tree, request, head_bytes)
        warn_of_plan(sweep, self.session)
        return DecoderJob(opened=self, prompts=prompts, sweep=sweep, normalized=normalized)

    def check_known_answers(self, prompts: Sequence[Prompt]) -> list[KnownAnswer]:
        """The probe of the first prompt; see `OpenMembers`."""
        folder = self.session.folder
        with self.session.timer.phase("probe"):
            found = check_known_answer(self.model, self.machine, self.adapters, prompts[0], folder)
        return [] if found is None else [found]

    def with_texts(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """The prompts, whose branches have their texts already."""
        return iter(prompts)

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Sums of continuations' log-probabilities, and whether each is the greedy one; see `Scorer`."""
        if not pairs:
            return []
        prompts = render_continuations(pairs, self.tokenizer, window=self.prompting.window)
        job = replace(self, head=CONTINUATION).prepare(prompts, GroupGoal())
        rows = {int(row.question.id): row for group in job.groups(Deadline()) for row in group}
        ordered = [rows[number] for number in range(len(pairs))]
        return [(float(row.scores[0]), bool(row.member_scores[IS_GREEDY][0])) for row in ordered]

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


@dataclass(kw_only=True, eq=False)
class DecoderJob:
    """Prompts with their planned sweep; `swept` are the groups done so far. See `Job`."""

    opened: DecoderMembers
    prompts: Sequence[Prompt]
    sweep: SweepJob
    normalized: bool
    swept: list[SweptGroup] = field(default_factory=list)
    num_scored: int = 0
    bytes_read: int = 0

    @property
    def machine(self) -> Machine:
        """What it runs on."""
        return self.opened.machine

    @property
    def predicted_s(self) -> float:
        """Seconds of the sweep."""
        return self.sweep.plan.predicted_s

    @property
    def prefix_sharing(self) -> PrefixSharing:
        """What the tree saves."""
        paths = [
            {branch.token_ids.tobytes(): branch.token_ids for branch in prompt.branches}.values()
            for prompt in self.prompts
        ]
        return PrefixSharing(
            trie_nodes=self.sweep.tree.num_tokens,
            tokens_per_option_run=sum(len(path) for distinct in paths for path in distinct),
        )

    def describe(self) -> dict[str, object]:
        """The plan as run.json keeps it."""
        plan = self.sweep.plan
        return {
            **asdict(plan),
            "tokens_computed": plan.tokens,
            "sweep_s": plan.predicted_s,
            **describe_head(self.opened.head),
            "template": self.opened.prompting.template.name,
            "members": list(self.opened.members),
            "num_layers": self.opened.model.checkpoint.num_layers,
            "final_norm": self.opened.model.normalizes,
            **asdict(self.prefix_sharing),
            "num_micro_batches": self.sweep.num_micro_batches,
            "budgets": asdict(self.machine.budgets),
            "rates": asdict(self.machine.rates),
        }

    def groups(self, deadline: Deadline) -> Iterator[list[QuestionScores]]:
        """Sweeps group after group, and scores the questions that each completes; see `Job`."""
        session, reader = self.opened.session, self.opened.model.reader
        before = reader.num_bytes_read
        self.opened.verify()
        num_layers = self.opened.model.checkpoint.num_layers
        total = self.sweep.tree.num_tokens * len(self.opened.members) * num_layers
        with progress_bar("sweep", total, shown=session.shows_progress) as advance:
            groups = session.timer.each("sweep", self._swept_groups(advance))
            with closing(groups):
                for group in groups:
                    self.swept.append(group)
                    with session.timer.phase("heads"):
                        scores = self._score(group)
                    self.bytes_read = reader.num_bytes_read - before
                    yield scores
                    if not deadline.allows(max(swept.seconds for swept in self.swept)):
                        break

    def measure(self) -> Measured:
        """What the sweep took."""
        tokens = sum(group.tokens_computed for group in self.swept)
        overflows = [overflow for group in self.swept for overflow in group.overflows]
        halvings = [halving for group in self.swept for halving in group.halvings]
        plan = self.sweep.plan
        return Measured(
            num_questions=self.num_scored,
            tokens_computed=tokens,
            flops=plan.flops * tokens / plan.tokens,
            bytes_read=self.bytes_read,
            float32_micro_batches=len(overflows),
            overflow=describe_overflows(overflows),
            halved_micro_batches=len(halvings),
            halving=describe_halvings(halvings),
            prefix_sharing=self.prefix_sharing,
            weight_stream=WeightStream(
                weights_wait_s=sum(group.weights_wait_s for group in self.swept),
                weights_read_s=sum(group.weights_read_s for group in self.swept),
                bytes_verified=self.opened.model.reader.num_bytes_verified,
            ),
        )

    def _swept_groups(self, advance: Advance) -> Iterator[SweptGroup]:
        """The sweep's groups; readouts that are not finite are told with the questions they belong to."""
        try:
            yield from run_sweep(self.sweep, self.opened.session.folder, advance)
        except ReadoutsNotFiniteError as error:
            ids = ids_of_readouts(self.prompts, self.sweep.scored_tree.targets, error.streams)
            told = describe_not_finite(str(error), ids, self.machine.computes_in)
            raise FloatingPointError(told) from error

    def _score(self, group: SweptGroup) -> list[QuestionScores]:
        """Scores of the questions whose last readout the group holds: every member's, averaged."""
        completed = self.sweep.completed[group.index]
        if not completed:
            return []
        opened, targets = self.opened, self.sweep.scored_tree.targets_of(completed)
        prompts = [self.prompts[index] for index in completed]
        heads = MemberHeads(
            head=opened.head,
            model=opened.model,
            adapters=opened.adapters or (None,),
            labels=opened.labels,
            dtype=opened.machine.computes_in,
            normalized=self.normalized,
            apart=opened.session.overrides.deterministic,
        )
        self.num_scored += len(prompts)
        return heads.score(prompts, targets, group.readouts)
