"""What the YAML of `strata run` may say, key by key. Says nothing of what it means together; config.py does.

retrieval:                  # context sources by name; the keys of one are the flags of `strata search`
  wiki: {index: DIR, method: [bm25], context_tokens: 800}
members:                    # ways of scoring by name; a member's keys are the flags of `strata score`
  small: {model: DIR, head: letters, debias: rotate, context: wiki}
  big: {model: DIR, adapter: DIR, weight: 2.0}
stages:                     # in order; without any, one with all members
  - members: [small]
  - {name: hard ones, members: [big], questions: {least_sure: 0.4}, combine: replace}
ensemble: {over: probabilities, weights: fit}
calibration: temperature
fitted: runs/valid/fitted.json
deadline: 8.5h
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from strata.engine.heads.debiasing.registry import DebiasName
from strata.engine.heads.loglik import DEFAULT_NORMALIZATION, Normalization
from strata.engine.json_files import Schema

Name = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
"""Of members and context sources, which name files too."""
Share = Annotated[float, Field(gt=0, le=1)]


class Section(Schema):
    """A base: a key that nobody knows is refused, with the known one that is most like it, or all of them."""

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, values: object) -> object:
        unknown = [key for key in values if key not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            like = get_close_matches(str(unknown[0]), cls.model_fields, n=1)
            expected = like[0] if like else f"one of {', '.join(cls.model_fields)}"
            kind = PydanticCustomError("unknown_key", "expected {expected}", {"expected": expected})
            misfit = InitErrorDetails(type=kind, loc=(unknown[0],), input=unknown[0])
            raise ValidationError.from_exception_data(cls.__name__, [misfit])
        return values


class MachineSection(Section):
    """What of the machine may be used; see `MachineSettings`. Of a member, what differs from all others."""

    devices: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] | None = None
    memory_gib: float | None = Field(default=None, gt=0)
    host_memory_gib: float | None = Field(default=None, gt=0)
    verify: bool | None = None
    cache_dir: str | None = None


class MemberSection(Section):
    """One way of scoring; see `Member`. `context` is a source's name, none, or question: the file's own."""

    model: str
    adapter: str | None = None
    adapter_settings: Literal["use", "ignore"] = "use"
    head: str = "auto"
    template: str | None = None
    debias: DebiasName = "none"
    debias_orders: int | None = Field(default=None, ge=1)
    debias_sample: float = Field(default=0.05, gt=0, le=1)
    debias_seed: int = Field(default=0, ge=0)
    normalize: Normalization = DEFAULT_NORMALIZATION
    max_tokens: int | None = Field(default=None, ge=1)
    context: str = "question"
    chat: bool = False
    system: str | None = None
    shots: str | None = None
    num_shots: int = Field(default=5, ge=1)
    layers: float | None = Field(default=None, gt=0)
    layers_norm: bool | None = None
    weight: float = Field(default=1.0, ge=0)
    machine: MachineSection = MachineSection()


RULES = ("least_sure", "margin_below", "probability_below", "entropy_above", "risk")


class RuleSection(Section):
    """Which questions a stage takes: by one rule on what the stages before say of them."""

    least_sure: Share | None = None
    margin_below: float | None = Field(default=None, ge=0, le=1)
    probability_below: Share | None = None
    entropy_above: float | None = Field(default=None, ge=0, le=1)
    risk: float | None = Field(default=None, gt=0, lt=1)
    by: Literal["margin", "probability", "entropy"] = "margin"

    @model_validator(mode="after")
    def _has_one_rule(self) -> RuleSection:
        if sum(getattr(self, name) is not None for name in RULES) != 1:
            raise ValueError(f"expected one rule of {', '.join(RULES)}")
        return self


class StageSection(Section):
    """Members that score some questions: all of them unless a rule is given."""

    members: list[str] = Field(min_length=1)
    name: str | None = None
    questions: RuleSection | None = None
    combine: Literal["blend", "replace"] = "blend"


class EnsembleSection(Section):
    """How members become one: what is averaged, and with which weights (`fit`: on answered questions)."""

    over: Literal["probabilities", "logits", "ranks"] = "probabilities"
    weights: Literal["given", "fit"] = "given"


class InputSection(Section):
    """How the question file is read."""

    id_column: str = "id"
    context_column: str = "context"


class OutputSection(Section):
    """What is left."""

    submission: Literal["best", "probabilities"] = "best"


class RunSection(Section):
    """The whole file."""

    members: dict[Name, MemberSection] = Field(min_length=1)
    retrieval: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    stages: list[StageSection] = Field(default_factory=list)
    ensemble: EnsembleSection = EnsembleSection()
    calibration: Literal["none", "temperature", "isotonic"] = "none"
    fitted: str | None = None
    deadline: str | None = None
    machine: MachineSection = MachineSection()
    input: InputSection = InputSection()
    output: OutputSection = OutputSection()
