"""Encoder members that share one checkpoint: opened, asked, planned, and run batch by batch.

Flow: Member settings -> config and headers (`open_encoder_members`) -> rows (`render`) -> batches by length,
the model loaded once a device (`prepare`) -> logits of all members -> scores (`EncoderJob.groups`).
The model is far smaller than the machine: it is loaded whole. Its rows share no tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch

from strata.engine.deadline import Deadline
from strata.engine.encoders.batches import EncoderLane, ScoredBatch, score_batches
from strata.engine.encoders.encoder import EncoderShape, add_adapters, load_encoder
from strata.engine.encoders.rows import EncoderPrompt, EncoderTokenizer, batch_by_length
from strata.engine.heads.probabilities import option_probabilities
from strata.engine.jobs.identity import identify_members
from strata.engine.jobs.job import KnownAnswer, Measured, Session
from strata.engine.machine.devices import GIB
from strata.engine.machine.machine import Machine
from strata.engine.machine.rates import GEMM_EFFICIENCY
from strata.engine.machine.roofline import RooflineProbe
from strata.engine.members.ensemble import average_members
from strata.engine.members.member import Member
from strata.engine.plan.overrides import GroupGoal
from strata.engine.progress import progress_bar
from strata.engine.results.partial_scores import fingerprint_job
from strata.engine.types import InputError, Prompt, Question, QuestionScores
from strata.engine.weights.checkpoint_folder import weight_files

HEAD = "multiple-choice"
MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Where the memory allows it: larger ones are no faster."""
YIELD_EVERY_S = 5.0
"""Scores are handed on about this often: what a crash may cost."""


@dataclass(kw_only=True, eq=False)
class EncoderMembers:
    """Members of one encoder, opened; see `open_encoder_members`.

    Attributes:
        settings: the members as the user names them.
        shape: of the encoder.
        writer: makes rows of questions.
        machine: what they run on.
        session: of the caller.
        lanes: a loaded model a device, once a job has been prepared.
    """

    settings: tuple[Member, ...]
    shape: EncoderShape
    writer: EncoderTokenizer
    machine: Machine
    session: Session
    lanes: list[EncoderLane] = field(default_factory=list)

    @property
    def members(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(member.name for member in self.settings)

    @property
    def label_names(self) -> tuple[str, ...]:
        """None: options are scored."""
        return ()

    @property
    def weight_bytes(self) -> int:
        """Of the model on each device."""
        return self.shape.num_weights * self.machine.dtype.itemsize

    def render(self, questions: Sequence[Question], source: str) -> list[EncoderPrompt]:
        """The rows of questions; see `OpenMembers`."""
        return self.writer.encode(self.settings[0].read(questions), source)

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """A digest of all that decides the scores; see `OpenMembers`."""
        apart = ("deterministic",) if self.session.overrides.deterministic else ()
        settings = (HEAD, self.machine.dtype, *apart, *identify_members(self.settings))
        return fingerprint_job(prompts, settings)

    def prepare(self, prompts: Sequence[Prompt], group_goal: GroupGoal) -> EncoderJob:
        """Cuts the rows into batches and loads the model; see `OpenMembers`. Groups are as they come."""
        rows = [prompt for prompt in prompts if isinstance(prompt, EncoderPrompt)]
        limit, apart = self._micro_batch_tokens(), self.session.overrides.deterministic
        lengths = [(len(prompt.branches), prompt.longest_tokens) for prompt in rows]
        if not self.lanes:
            with self.session.timer.phase("load"):
                self.lanes = self._load()
        return EncoderJob(
            opened=self,
            prompts=rows,
            batches=[[index] for index in range(len(rows))] if apart else batch_by_length(lengths, limit),
            micro_batch_tokens=limit,
        )

    def check_known_answers(self, prompts: Sequence[Prompt]) -> list[KnownAnswer]:
        """None: transformers' own model computes it."""
        return []

    @property
    def waits_for_all(self) -> bool:
        """Never: rows show one option each."""
        return False

    def finish(self, rows: Sequence[QuestionScores]) -> list[QuestionScores]:
        """As they are; see `OpenMembers`."""
        return list(rows)

    def with_texts(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """The prompts with each row's text, special tokens included."""
        return (self.writer.with_texts(prompt) for prompt in prompts if isinstance(prompt, EncoderPrompt))

    def close(self) -> None:
        """Lets go of the models."""
        self.lanes = []

    def _micro_batch_tokens(self) -> int:
        """Tokens a batch: the user's, else the usual number where weights and activations fit the budget."""
        machine = self.machine
        budgets, copies = machine.budgets, len(machine.devices) if machine.on_cpu else 1
        budget = min(budgets.device_bytes, budgets.host_bytes) if machine.on_cpu else budgets.device_bytes
        left = budget - copies * self.weight_bytes
        # About what a layer has alive at a time: residual, queries, keys, values, the wide part, in float32.
        fitting = int(left // (copies * 4 * 16 * self.shape.hidden_size))
        if fitting < self.shape.window_tokens:
            raise InputError(
                f"--memory-gib: {budget / GIB:.2f} GiB are too few; the encoder's weights take "
                f"{copies * self.weight_bytes / GIB:.2f} GiB, expected more than that"
            )
        usual = MICRO_BATCH_TOKENS["cpu" if machine.on_cpu else "cuda"]
        return self.session.overrides.micro_batch_tokens or min(fitting, usual)

    def _load(self) -> list[EncoderLane]:
        """One model a device, all adapters on it.

        Raises:
            InputError: weights or adapters that do not fit, or a checkpoint without a choice head.
        """
        path, dtype = self.settings[0].model, self.machine.dtype
        adapters = [member.adapter for member in self.settings if member.adapter is not None]
        loaded, missing = load_encoder(path, dtype)
        model: Any = loaded
        if adapters:
            model = add_adapters(loaded, adapters, missing).to(dtype)
        elif missing:
            raise InputError(
                f"{path}: a plain encoder, its checkpoint holds no {missing[0]}; expected one with a "
                "trained choice head: make it with strata train --task multiple-choice"
            )
        models = [model, *(copy.deepcopy(model) for _ in self.machine.devices[1:])]
        return [
            EncoderLane(one.to(name), torch.device(name), self.writer.tokenizer, len(adapters))
            for one, name in zip(models, self.machine.devices, strict=True)
        ]


@dataclass(kw_only=True, eq=False)
class EncoderJob:
    """Rows in batches, on loaded models; `done` are the batches scored, `probe` looks on. See `Job`."""

    opened: EncoderMembers
    prompts: Sequence[EncoderPrompt]
    batches: list[list[int]]
    micro_batch_tokens: int
    done: list[ScoredBatch] = field(default_factory=list)
    probe: RooflineProbe | None = None

    @property
    def machine(self) -> Machine:
        """What it runs on."""
        return self.opened.machine

    @property
    def num_tokens(self) -> int:
        """Tokens of the rows."""
        return sum(prompt.num_tokens for prompt in self.prompts)

    @property
    def flops(self) -> float:
        """Of these rows and all members, padding aside."""
        rows = (len(branch.token_ids) for prompt in self.prompts for branch in prompt.branches)
        return len(self.opened.members) * sum(map(self.opened.shape.flops, rows))

    @property
    def predicted_s(self) -> float:
        """Seconds at the usual share of the GEMM rate."""
        rate = GEMM_EFFICIENCY * self.machine.rates.gemm_flop_per_s * len(self.machine.devices)
        return self.flops / rate

    def describe(self) -> dict[str, object]:
        """The plan as run.json keeps it."""
        return {
            "head": HEAD,
            "dtype": str(self.machine.dtype).removeprefix("torch."),
            "devices": self.machine.devices,
            "members": list(self.opened.members),
            "window_tokens": self.opened.writer.limit_tokens,
            "micro_batch_tokens": self.micro_batch_tokens,
            "num_micro_batches": len(self.batches),
            "tokens_computed": self.num_tokens * len(self.opened.members),
            "flops": self.flops,
            "sweep_s": self.predicted_s,
            "weight_bytes": self.opened.weight_bytes,
            "budgets": asdict(self.machine.budgets),
            "rates": asdict(self.machine.rates),
            **self.machine.describe_products(),
        }

    def groups(self, deadline: Deadline) -> Generator[list[QuestionScores], None, None]:
        """Scores batch after batch, and hands on what is known every few seconds; see `Job`."""
        session = self.opened.session
        batches = [[self.prompts[index] for index in batch] for batch in self.batches]
        known: list[QuestionScores] = []
        handed_on = perf_counter()
        total = self.num_tokens * len(self.opened.members)
        probe = self.probe = RooflineProbe.of(self.machine, self.opened.shape.hidden_size)
        try:
            with progress_bar("encode", total, shown=session.shows_progress) as advance:
                scored = score_batches(self.opened.lanes, batches, deadline)
                with closing(session.timer.each("sweep", scored)) as timed:
                    for batch in timed:
                        self.done.append(batch)
                        known += self._scores_of(batch)
                        advance(batch.num_tokens)
                        if perf_counter() - handed_on > YIELD_EVERY_S:
                            yield known
                            known, handed_on = [], perf_counter()
        except (Exception, KeyboardInterrupt):
            if known:
                yield known
            raise
        if known:
            yield known
        with session.timer.phase("roofline"):
            probe.sample_after()

    def measure(self) -> Measured:
        """What the batches took."""
        tokens = sum(batch.num_tokens for batch in self.done)
        num_float32 = sum(batch.needed_float32 for batch in self.done)
        num_halved = sum(batch.num_halved for batch in self.done)
        return Measured(
            num_questions=sum(len(batch.prompts) for batch in self.done),
            tokens_computed=tokens,
            flops=self.flops * tokens / (self.num_tokens * len(self.opened.members)),
            bytes_read=sum(file.stat().st_size for file in self._weight_files()),
            float32_micro_batches=num_float32,
            overflow=f"{num_float32} micro-batch(es) were not finite in {self.machine.dtype}; "
            "they were computed in float32"
            if num_float32
            else "",
            halved_micro_batches=num_halved,
            halving=f"memory ran out {num_halved} time(s): batches were cut in two; "
            f"a smaller --micro-batch-tokens than {self.micro_batch_tokens} fits from the start"
            if num_halved
            else "",
            padding_tokens=sum(batch.num_padding_tokens for batch in self.done),
            roofline=None if self.probe is None else self.probe.seen,
        )

    def _weight_files(self) -> list[Any]:
        settings = self.opened.settings
        adapters = [member.adapter for member in settings if member.adapter is not None]
        return [*weight_files(settings[0].model), *(path / "adapter_model.safetensors" for path in adapters)]

    def _scores_of(self, batch: ScoredBatch) -> list[QuestionScores]:
        rows = {
            name: [
                QuestionScores(
                    question=prompt.question, scores=logits, probabilities=option_probabilities(logits)
                )
                for prompt, logits in zip(batch.prompts, found, strict=True)
            ]
            for name, found in zip(self.opened.members, batch.members, strict=True)
        }
        return average_members(rows)
