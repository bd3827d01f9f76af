"""What a scoring job can be told: the flags of `strata score`. Imports nothing heavy: --help is quick.

The settings of a room live in that room (machine, plan, members); here they are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from strata.engine.deadline import parse_duration_s
from strata.engine.heads.debiasing.debias import DebiasSettings
from strata.engine.heads.debiasing.registry import DebiasName
from strata.engine.heads.loglik import DEFAULT_NORMALIZATION, Normalization
from strata.engine.heads.registry import AUTO, CLASSIFY, HEADS
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.questions.shots import read_shots
from strata.engine.ray_cluster import RaySettings
from strata.engine.types import InputError, Question

if TYPE_CHECKING:
    HeadName = str
else:
    # The command line offers what is registered.
    HeadName = Literal[(AUTO, *HEADS)]

C = TypeVar("C", bound="ScoreConfig")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of one run."""

    model: Path
    """Hugging Face checkpoint directory, as downloaded (safetensors), or a GGUF file."""
    questions: Path
    """CSV, Parquet, JSONL: id,prompt,A..E[,answer][,context] or id,question,options[][,answer][,context]."""
    task: Literal["choice", "classify"] = "choice"
    """classify: texts ([id,]text or text_a,text_b[,label][,options]) get a trained classifier's labels."""
    out: Path
    """Folder for what the run leaves."""
    adapter: tuple[Path, ...] = ()
    """PEFT LoRA adapter folder; repeat for several, which then share one sweep of the base weights."""
    adapter_settings: Literal["use", "ignore"] = "use"
    """use: what is not given here is as strata.json in the adapter's folder says it was trained (head,
    template, max-tokens, normalize, chat, system, debias set)."""
    head: HeadName = "auto"
    """How options are scored; auto takes a classifier head if checkpoint or adapter has one, else yes-no."""
    labels: Path | None = None
    """With --task classify: a file with the labels' names (JSON with id2label, or one a line)."""
    layers: float | None = None
    """The head reads after so many layers, or such a share of them (0.5); what lies beyond is not read."""
    layers_norm: Literal["auto", "yes", "no"] = "auto"
    """Apply the final norm after those layers: auto does unless the adapter was trained without."""
    submission: Literal["best", "probabilities"] = "best"
    """submission.csv: the three best letters (labels), or of --task classify a probability column a label."""
    debias: DebiasName = "none"
    """Against a preference for positions. Head letters: rotate averages over every cyclic order, permute over
    all or --debias-orders, pride learns a prior on --debias-sample. Others: set lists options unordered."""
    debias_orders: int | None = None
    """With permute: orders a question, the stated one included; all up to 24 by default."""
    debias_sample: float = 0.05
    """With pride: share of the questions (at least 16) that is shown in every cyclic order."""
    debias_seed: int = 0
    """Of orders and samples that are drawn."""
    normalize: Normalization | None = None
    """What log-likelihoods are divided by (loglik): the option's length in char, the default, byte or token,
    or none."""
    id_column: str = "id"
    """Column that holds ids; in a file without one, rows' numbers are ids."""
    context_column: str = "context"
    """Column that holds the retrieved context; none leaves out what the file has."""
    chat: bool = False
    """Ask in the tokenizer's chat template; the answer is what the assistant would say."""
    system: str | None = None
    """System message of the chat; what the chat template says without one by default."""
    shots: Path | None = None
    """Question file with answers, of which the first --num-shots are shown before every question."""
    num_shots: int = 5
    """How many of --shots are shown; a question that is among them sees the next one instead of itself."""
    max_tokens: int | None = None
    """Longest prompt in tokens; only contexts are ever shortened."""
    template: str | None = None
    """Built-in template (statement, yes-no, letters) or a file; the head's own by default. With --chat it is
    the user's message or, where it uses `messages`, the chat template."""
    machine: MachineSettings = field(default_factory=MachineSettings)
    """What of the machine the run may use."""
    int8_check_questions: int = 16
    """With --dtype int8: questions scored first, with and without it, to warn where it is not safe; 0 skips
    this, and two more reads."""
    strict: bool = False
    """Refuse odd rows instead of warning."""
    probe: bool = True
    """Before the run, compute a first layer of the real weights in two ways; stop where they differ."""
    save_prompts: bool = False
    """Leave prompts.jsonl: tokens, text and scored positions of every branch."""
    deadline: str | None = None
    """Wall time the run may take, such as 8.5h or 90m; questions not reached get the longest option first."""
    resume: bool = False
    """Go on with an interrupted run in the same --out; a long run is cut into groups that are kept."""
    overwrite: bool = False
    """Replace a finished run in --out."""
    limit: int | None = None
    """Only the first N questions."""
    plan: PlanOverrides = field(default_factory=PlanOverrides)
    """What of the planner's choice is fixed."""
    cluster: RaySettings = field(default_factory=RaySettings)
    """Whether a cluster scores."""
    progress: bool = False
    """Tell of progress on stderr (the command line does): a bar on a terminal, else a line a minute."""

    @classmethod
    def from_flags(cls: type[C], **flags: Any) -> C:
        """The settings that flags of these names give; those of the parts need no prefix."""
        return cls(**_nest(cls, flags))

    def as_flags(self) -> dict[str, Any]:
        """Every setting by its flag's name, those of the parts included; what run.json keeps."""
        return dict(_flatten(self))

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        self.machine.check()
        self.plan.check()
        self.cluster.check()
        self._check_task()
        if self.int8_check_questions < 0:
            raise InputError(f"--int8-check-questions: {self.int8_check_questions}; expected 0 or more")
        if self.deadline is not None:
            parse_duration_s("--deadline", self.deadline)

    def _check_task(self) -> None:
        if self.task == "classify":
            if self.head not in (AUTO, CLASSIFY):
                raise InputError(f"--head {self.head}: --task classify has a head of its own; expected auto")
            return
        for flag, given in (
            ("--labels", self.labels is not None),
            ("--submission probabilities", self.submission != "best"),
            (f"--head {CLASSIFY}", self.head == CLASSIFY),
        ):
            if given:
                raise InputError(f"{flag}: questions have letters, not labels; expected --task classify")

    def members(self) -> list[Member]:
        """A member an adapter, or the base model alone.

        Raises:
            InputError: few-shot examples that cannot be read, or settings of --debias that mean nothing.
        """
        shots: tuple[Question, ...] = ()
        if self.shots is not None:
            shots = read_shots(self.shots, self.num_shots, context_column=self.context_column)
        debiasing = DebiasSettings(
            num_orders=self.debias_orders, sample=self.debias_sample, seed=self.debias_seed
        )
        member = Member(
            model=self.model,
            head=CLASSIFY if self.task == "classify" else self.head,
            template=self.template,
            debias=self.debias,
            debiasing=debiasing,
            normalize=self.normalize or DEFAULT_NORMALIZATION,
            chat=self.chat,
            system=self.system,
            shots=shots,
            num_shots=self.num_shots if shots else None,
            max_tokens=self.max_tokens,
            labels=self.labels,
            layers=self.layers,
            layers_norm=None if self.layers_norm == "auto" else self.layers_norm == "yes",
        )
        taken = self.settings_of_adapters()
        return [
            replace(member, adapter=adapter, **({} if adapter is None else taken[adapter]))
            for adapter in self.adapter or (None,)
        ]

    def settings_of_adapters(self) -> dict[Path, dict[str, Any]]:
        """The settings that are not given and that each adapter's folder has, by the folder.

        Raises:
            InputError: a broken strata.json.
        """
        # --help shows these settings, and loads nothing that checks files.
        from strata.engine.adapters.trained_settings import take_settings

        if self.adapter_settings == "ignore":
            return {adapter: {} for adapter in self.adapter}
        is_given = {
            "head": self.head != AUTO or self.task == "classify",
            "template": self.template is not None,
            "max_tokens": self.max_tokens is not None,
            "normalize": self.normalize is not None,
            "chat": self.chat,
            "system": self.system is not None,
            "debias": self.debias != "none",
        }
        given = [name for name, is_so in is_given.items() if is_so]
        return {adapter: take_settings(adapter, given) for adapter in self.adapter}


@dataclass(frozen=True, kw_only=True)
class PlanConfig(ScoreConfig):
    """Settings of `strata plan`: those of a run, which leaves nothing, or a shape without a checkpoint."""

    # Not required when --shape says what the model is; run_plan checks which of both was given.
    model: Path | None = None  # type: ignore[assignment]
    """Hugging Face checkpoint directory; or give --shape."""
    questions: Path | None = None  # type: ignore[assignment]
    """Question file; with --shape their number."""
    out: Path = Path("runs/plan")
    """Not used: a plan leaves nothing."""
    profile: str | None = None
    """Plan for another machine: kaggle-2xt4, card-24gb, h100, h200, cpu-zen4, cpu-avx2, or a file of
    `strata bench calibrate --out FILE`."""
    shape: str | None = None
    """A model that is not there: tinyllama-1.1b, llama2-7b, llama2-13b, llama2-70b, or a config.json."""
    tokens: int = 1500
    """With --shape: tokens to compute a question, its options included."""
    options: int = 5
    """With --shape: options a question."""
    option_tokens: int = 40
    """With --shape: tokens an option."""
    storage: Literal["all", "fp16", "int8", "nf4"] = "all"
    """With --shape: how the weights are stored."""
    json: bool = False
    """With --shape: also print the table as one JSON line."""


PARTS = {"machine": MachineSettings, "plan": PlanOverrides, "cluster": RaySettings}
"""Settings of other rooms by the field that holds them."""


def _nest(config: type, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags sorted into the parts that they belong to."""
    nested = dict(flags)
    for name, part in PARTS.items():
        taken = {known.name: nested.pop(known.name) for known in fields(part) if known.name in nested}
        if taken:
            nested[name] = part(**taken)
    return nested


def _flatten(config: Any) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for known in fields(config):
        value = getattr(config, known.name)
        flat += _flatten(value) if is_dataclass(value) else [(known.name, value)]
    return flat
