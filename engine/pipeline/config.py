"""From the YAML of `strata run` to members and stages that fit together; what does not is told by place.

Flow: file -> schema -> `read_pipeline`: members by name, stages in order, what is fitted, the deadline. Opens
no model and no index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from strata.engine.adapters.trained_settings import take_settings
from strata.engine.deadline import parse_duration_s
from strata.engine.heads.debiasing.debias import DebiasSettings
from strata.engine.heads.registry import AUTO, CLASSIFY, HEADS
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import FROM_QUESTION, NO_CONTEXT, Member, check_names
from strata.engine.pipeline.schema import (
    EnsembleSection,
    InputSection,
    MachineSection,
    MemberSection,
    OutputSection,
    RuleSection,
    RunSection,
    StageSection,
)
from strata.engine.questions.shots import read_shots
from strata.engine.types import InputError
from strata.engine.yaml_files import YamlFile, override, read_yaml


@dataclass(frozen=True, kw_only=True)
class PipelineMember:
    """A member, on what it runs, and how much it counts."""

    member: Member
    machine: MachineSettings
    weight: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Members that score the questions that a rule chooses; the first stage's has no rule and takes all."""

    name: str
    members: tuple[str, ...]
    rule: RuleSection | None
    replaces: bool


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A checked file.

    Attributes:
        file: for messages about what only the work itself shows.
        members: by name, in the file's order.
        stages: in order; every member is in exactly one.
        retrieval: settings of each context source, as the file has them.
        fitted: what an earlier run on answered questions fitted.
    """

    file: YamlFile
    members: dict[str, PipelineMember]
    stages: tuple[Stage, ...]
    retrieval: dict[str, dict[str, Any]]
    ensemble: EnsembleSection
    calibration: str
    fitted: Path | None
    deadline: str | None
    input: InputSection
    output: OutputSection

    @property
    def fits(self) -> bool:
        """Whether something is to be fitted on the run's own answers."""
        has_risk = any(stage.rule is not None and stage.rule.risk is not None for stage in self.stages)
        wants = self.ensemble.weights == "fit" or self.calibration != "none" or has_risk
        return wants and self.fitted is None

    @property
    def sources(self) -> list[str]:
        """Context sources that members use, in order of first use."""
        names = [self.members[name].member.context for stage in self.stages for name in stage.members]
        return list(dict.fromkeys(name for name in names if name in self.retrieval))

    @property
    def unused_sources(self) -> list[str]:
        """Context sources that no member names."""
        return [name for name in self.retrieval if name not in self.sources]


def read_pipeline(path: Path, settings: Sequence[str] = ()) -> Pipeline:
    """Reads and checks a file.

    Args:
        path: the YAML file.
        settings: values put into it first, such as `members.big.machine.dtype=int8`.

    Raises:
        InputError: what does not fit, with line and column.
    """
    file = override(read_yaml(path), settings)
    section = file.fit(RunSection)
    for name in (FROM_QUESTION, NO_CONTEXT):
        if name in section.retrieval:
            raise file.error(("retrieval", name), f"{name} has a meaning of its own; expected another name")
    members = {
        name: _member(file, section, name, member, index)
        for index, (name, member) in enumerate(section.members.items())
    }
    _named(file, ("members",), lambda: check_names(list(members)))
    stages = _stages(file, section)
    if section.deadline is not None:
        _named(file, ("deadline",), lambda: parse_duration_s("expected a duration", str(section.deadline)))
    return Pipeline(
        file=file,
        members=members,
        stages=stages,
        retrieval=section.retrieval,
        ensemble=section.ensemble,
        calibration=section.calibration,
        fitted=None if section.fitted is None else Path(section.fitted),
        deadline=section.deadline,
        input=section.input,
        output=section.output,
    )


def _named(file: YamlFile, keys: tuple[str | int, ...], check: Any) -> Any:
    """What a check returns; its error gets the place of the keys."""
    try:
        return check()
    except InputError as error:
        raise file.error(keys, str(error)) from None


def _member(
    file: YamlFile, section: RunSection, name: str, given: MemberSection, index: int
) -> PipelineMember:
    keys = ("members", name)
    if given.head not in (AUTO, *HEADS) or given.head == CLASSIFY:
        heads = ", ".join(head for head in (AUTO, *HEADS) if head != CLASSIFY)
        raise file.error((*keys, "head"), f"expected one of {heads}, found {given.head!r}")
    known = (FROM_QUESTION, NO_CONTEXT, *section.retrieval)
    if given.context not in known:
        raise file.error((*keys, "context"), f"expected one of {', '.join(known)}, found {given.context!r}")
    shots = () if given.shots is None else _named(file, (*keys, "shots"), lambda: _shots(section, given))
    adapter = None if given.adapter is None else Path(given.adapter)
    taken: dict[str, Any] = {}
    if adapter is not None and given.adapter_settings == "use":
        taken = take_settings(adapter, given.model_fields_set)
    member = Member(
        model=Path(given.model),
        adapter=adapter,
        head=given.head,
        template=given.template,
        debias=given.debias,
        debiasing=DebiasSettings(
            num_orders=given.debias_orders, sample=given.debias_sample, seed=given.debias_seed
        ),
        normalize=given.normalize,
        max_tokens=given.max_tokens,
        context=given.context,
        chat=given.chat,
        system=given.system,
        shots=shots,
        num_shots=given.num_shots if shots else None,
        label=name,
        layers=given.layers,
        layers_norm=given.layers_norm,
    )
    return PipelineMember(
        member=replace(member, **taken),
        machine=_machine(section.machine, given.machine),
        weight=given.weight,
    )


def _shots(section: RunSection, given: MemberSection) -> Any:
    return read_shots(Path(str(given.shots)), given.num_shots, context_column=section.input.context_column)


def _machine(shared: MachineSection, given: MachineSection) -> MachineSettings:
    """The settings that all members share, under those of one."""
    chosen = asdict(MachineSettings())
    for section in (shared, given):
        chosen |= {name: value for name, value in section.model_dump().items() if value is not None}
    if chosen["cache_dir"] is not None:
        chosen["cache_dir"] = Path(chosen["cache_dir"])
    return MachineSettings(**{field.name: chosen[field.name] for field in fields(MachineSettings)})


def _stages(file: YamlFile, section: RunSection) -> tuple[Stage, ...]:
    given = section.stages or [StageSection(members=list(section.members))]
    stage_of: dict[str, int] = {}
    stages: list[Stage] = []
    for index, stage in enumerate(given):
        for place, name in enumerate(stage.members):
            keys = ("stages", index, "members", place)
            if name not in section.members:
                raise file.error(keys, f"no member is called {name!r}; expected {', '.join(section.members)}")
            if name in stage_of:
                raise file.error(keys, f"{name!r} is in stage {stage_of[name] + 1} already; expected it once")
            stage_of[name] = index
        if index == 0 and stage.questions is not None:
            raise file.error(("stages", 0, "questions"), "the first stage takes all; expected no rule")
        called = stage.name or f"{index + 1} {' + '.join(stage.members)}"
        if called in [other.name for other in stages]:
            raise file.error(("stages", index, "name"), f"{called!r} comes twice; expected different names")
        stages.append(
            Stage(
                name=called,
                members=tuple(stage.members),
                rule=stage.questions,
                replaces=stage.combine == "replace",
            )
        )
    unused = next((name for name in section.members if name not in stage_of), None)
    if unused is not None:
        raise file.error(("members", unused), "is in no stage; expected it in one")
    for found in stages:
        if not any(section.members[name].weight for name in found.members):
            raise file.error(("stages",), f"all members of {found.name!r} have weight 0; expected one above")
    return tuple(stages)
