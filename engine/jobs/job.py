"""What a prepared job is, whatever kind of model computes it, and what is known of it afterwards.

Flow: members that share a model and prompts -> `render` questions -> `prepare` prompts: a Job -> its `groups`
of scores, as they end -> `measure`. Decoders and encoders implement the two protocols alike.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from strata.engine.deadline import Deadline
from strata.engine.machine.machine import Machine
from strata.engine.machine.product_rates import ProductRates
from strata.engine.machine.roofline import SeenRoofline
from strata.engine.plan.overrides import GroupGoal, PlanOverrides
from strata.engine.results.phases import PhaseTimer
from strata.engine.results.timeline import Timeline
from strata.engine.sweep.kept_states import KeptStates
from strata.engine.types import Prompt, Question, QuestionScores, RunWarnings


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """What the jobs of one caller have in common: where warnings and times go, what a plan is made with.

    Attributes:
        warnings: odd questions and settings that are not honoured.
        timer: seconds by phase.
        timeline: what sweeps did when.
        overrides: what of the plan is fixed.
        folder: where a hidden store on disk keeps its temporary files.
        shows_progress: a bar on stderr while something is computed.
        states: where hidden states are kept in long sweeps.
        products: what decides what to compute in on a CPU; None: this machine's.
    """

    warnings: RunWarnings = field(default_factory=RunWarnings)
    timer: PhaseTimer = field(default_factory=PhaseTimer)
    timeline: Timeline = field(default_factory=Timeline)
    overrides: PlanOverrides = field(default_factory=PlanOverrides)
    folder: Path
    shows_progress: bool = False
    states: KeptStates = field(default_factory=KeptStates)
    products: ProductRates | None = None


class Job(Protocol):
    """Prompts that are planned and can be scored, once."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """What it scores."""
        ...

    @property
    def machine(self) -> Machine:
        """What it runs on, and is planned for."""
        ...

    @property
    def predicted_s(self) -> float:
        """Seconds that scoring is expected to take."""
        ...

    def describe(self) -> dict[str, object]:
        """The plan as run.json keeps it."""
        ...

    def groups(self, deadline: Deadline) -> Generator[list[QuestionScores], None, None]:
        """Computes, and yields the scores of questions as they are known; each question once.

        Nothing is begun that would not end before the deadline.

        Raises:
            FloatingPointError: scores that are not finite even in float32.
            InputError: stored weights that turn out to be broken.
        """
        ...

    def measure(self) -> Measured:
        """What scoring took, so far."""
        ...


class OpenMembers(Protocol):
    """Members that share a model and prompts, opened: what is wrong with their files has been told."""

    @property
    def members(self) -> tuple[str, ...]:
        """Their names."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that texts may get; empty where options are scored."""
        ...

    def render(self, questions: Sequence[Question], source: str) -> Sequence[Prompt]:
        """The prompts of questions; `source` names the question file in messages.

        Raises:
            InputError: questions that the model cannot be asked.
        """
        ...

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """A digest of all that decides the scores of these prompts."""
        ...

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal) -> Job:
        """Plans the scoring of prompts that `render` made.

        Raises:
            InputError: too small a memory budget, or weights that do not fit.
        """
        ...

    @property
    def waits_for_all(self) -> bool:
        """Whether a question's scores depend on others', so that they are final only after `finish`."""
        ...

    def finish(self, rows: Sequence[QuestionScores]) -> list[QuestionScores]:
        """What groups made of questions, in order, given all that are scored; it may be called again."""
        ...

    def check_known_answers(self, prompts: Sequence[Prompt]) -> list[KnownAnswer]:
        """Computes the beginning of a prompt in two ways on the real weights, by each model that is streamed.

        Raises:
            InputError: they differ by more than the compute dtype explains.
        """
        ...

    def with_texts(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """The prompts with each branch's text, for prompts.jsonl."""
        ...

    def close(self) -> None:
        """Gives memory and open files back."""
        ...


@dataclass(frozen=True, kw_only=True)
class KnownAnswer:
    """What the probe found: tokens, seconds, and relative errors; None without a vocabulary projection."""

    num_tokens: int
    seconds: float
    readout_error: float
    logit_error: float | None


@dataclass(frozen=True, kw_only=True)
class PrefixSharing:
    """What the prefix tree saves: tokens of the tree, and of every distinct path on its own."""

    trie_nodes: int
    tokens_per_option_run: int


@dataclass(frozen=True, kw_only=True)
class WeightStream:
    """How streaming weights went: seconds waited for and spent reading, bytes verified."""

    weights_wait_s: float
    weights_read_s: float
    bytes_verified: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a job took.

    Attributes:
        num_questions: scored.
        tokens_computed: by all members, padding aside.
        flops: useful ones.
        bytes_read: of weights.
        float32_micro_batches: computed again in float32, since they were not finite.
        overflow: what to say of these; empty when there are none.
        halved_micro_batches: cut in two and computed again, since memory ran out.
        halving: what to say of these; empty when there are none.
        prefix_sharing: None for models that share nothing between options.
        weight_stream: None for models that are read whole.
        padding_tokens: computed in vain; None where nothing is padded.
        roofline: what GEMMs reached meanwhile; None where no sweep has ended.
    """

    num_questions: int
    tokens_computed: int
    flops: float
    bytes_read: int
    float32_micro_batches: int
    overflow: str = ""
    halved_micro_batches: int = 0
    halving: str = ""
    prefix_sharing: PrefixSharing | None = None
    weight_stream: WeightStream | None = None
    padding_tokens: int | None = None
    roofline: SeenRoofline | None = None
