"""A planned sweep of decoder members' prompts: swept group after group, and their heads read. See `Job`.

Flow: prompts and their planned sweep -> readouts of a group -> scores of the questions that it completes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Protocol

from strata.engine.adapters.lora import Adapter
from strata.engine.deadline import Deadline
from strata.engine.heads.head import Head
from strata.engine.heads.loglik import describe_head
from strata.engine.jobs.decoder_scores import MemberHeads
from strata.engine.jobs.describe import (
    describe_halvings,
    describe_not_finite,
    describe_overflows,
    ids_of_readouts,
)
from strata.engine.jobs.describe_sweep import describe_sweep
from strata.engine.jobs.job import Measured, PrefixSharing, Session, WeightStream
from strata.engine.machine.machine import Machine
from strata.engine.machine.roofline import RooflineProbe
from strata.engine.model.open_model import OpenModel
from strata.engine.plan.sweep_job import SweepJob
from strata.engine.progress import progress_bar
from strata.engine.prompts.render import PromptSettings
from strata.engine.sweep.readouts import ReadoutsNotFiniteError
from strata.engine.sweep.sweep import Advance, SweptGroup, run_sweep
from strata.engine.types import Prompt, QuestionScores


class SweptMembers(Protocol):
    """What a job needs of the opened members whose prompts it sweeps (see `DecoderMembers`).

    Attributes:
        adapters: the members' adapters, none for the base model alone.
        head: what scores their readouts.
        labels: the names of each member's labels; empty for heads without.
        machine: what they run on.
        model: the modules.
        prompting: template and bounds of their prompts.
        session: of the caller.
    """

    adapters: tuple[Adapter, ...]
    head: Head
    labels: tuple[tuple[str, ...], ...]
    machine: Machine
    model: OpenModel
    prompting: PromptSettings
    session: Session

    @property
    def members(self) -> tuple[str, ...]:
        """Their names."""
        ...

    def verify(self) -> None:
        """Checks what is read in parts only, once."""
        ...


@dataclass(kw_only=True, eq=False)
class DecoderJob:
    """Prompts with their planned sweep; `swept` are the groups done so far, `probe` looks on. See `Job`."""

    opened: SweptMembers
    prompts: Sequence[Prompt]
    sweep: SweepJob
    normalized: bool
    swept: list[SweptGroup] = field(default_factory=list)
    num_scored: int = 0
    bytes_read: int = 0
    probe: RooflineProbe | None = None

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
        opened = self.opened
        prompting = {**describe_head(opened.head), "template": opened.prompting.template.name}
        return {**describe_sweep(self.sweep, self.machine), **prompting, **asdict(self.prefix_sharing)}

    def groups(self, deadline: Deadline) -> Generator[list[QuestionScores], None, None]:
        """Sweeps group after group, and scores the questions that each completes; see `Job`."""
        session, reader = self.opened.session, self.opened.model.reader
        before = reader.num_bytes_read
        self.opened.verify()
        num_layers = self.opened.model.checkpoint.num_layers
        total = self.sweep.tree.num_tokens * len(self.opened.members) * num_layers
        probe = self.probe = self.begin_probe()
        with progress_bar("sweep", total, shown=session.shows_progress) as advance:
            guarded = probe.beside(deadline.guard(advance))
            groups = session.timer.each("sweep", self._swept_groups(guarded))
            with closing(groups):
                for group in groups:
                    with session.timer.phase("heads"):
                        scores = self.take(group)
                    self.bytes_read = reader.num_bytes_read - before
                    yield scores
                    if not deadline.allows(max(swept.seconds for swept in self.swept)):
                        break
        with session.timer.phase("roofline"):
            probe.sample_after()

    def begin_probe(self) -> RooflineProbe:
        """What samples the GEMM rate of a sweep that begins now."""
        width, devices = self.opened.model.checkpoint.config.hidden_size, self.sweep.plan.devices
        return RooflineProbe.of(self.machine, width, devices)

    def take(self, group: SweptGroup) -> list[QuestionScores]:
        """Takes down a group, and scores the questions whose last readout it holds."""
        self.swept.append(group)
        return self._score(group)

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
            roofline=None if self.probe is None else self.probe.seen,
        )

    def _swept_groups(self, advance: Advance) -> Iterator[SweptGroup]:
        """The sweep's groups; readouts that are not finite are told with the questions they belong to."""
        session = self.opened.session
        try:
            track = session.timeline.begin(", ".join(self.opened.members))
            keeper = session.states.begin([self.sweep], [prompt.question.id for prompt in self.prompts])
            yield from run_sweep(self.sweep, session.folder, advance, track=track, keeper=keeper)
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
