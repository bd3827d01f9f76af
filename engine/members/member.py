"""A member: one way of scoring questions. An ensemble is a list of them. Imports nothing heavy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.engine.heads.debias import BY_PLACE, STATED_ORDER
from strata.engine.heads.debiasing.debias import DebiasSettings
from strata.engine.heads.debiasing.registry import DebiasName
from strata.engine.heads.loglik import DEFAULT_NORMALIZATION, Normalization
from strata.engine.json_files import check_fields, shown
from strata.engine.types import SUMS, InputError, Question

if TYPE_CHECKING:
    from strata.engine.prompts.templates import Template

FROM_QUESTION, NO_CONTEXT = "question", "none"
"""What `Member.context` may say beside the name of a source."""
BASE_NAME = "base"
"""What a member without an adapter is called where it is the only one."""
BESIDE_SCORES = (STATED_ORDER, BY_PLACE, SUMS)
"""What heads call further scores of a question, which results keep as `<member>_<what>`."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """Model, adapter, head, prompt and context source; the settings of a decoder and of an encoder alike.

    Attributes:
        model: Hugging Face checkpoint folder, of a decoder or of an encoder with a multiple-choice head; or a
            decoder's GGUF file.
        adapter: PEFT LoRA folder, None for the model as it is.
        head: a head's name, or auto.
        template: built-in prompt template, a file, or a template itself; None takes the head's.
        debias: a way of the registry: none, rotate, permute, set or pride.
        debiasing: what that way is told.
        normalize: what head loglik divides log-likelihoods by: none, or the option's length in char, byte or
            token.
        max_tokens: longest prompt in tokens; None for the model's window.
        context: where contexts come from: `question` (its own), `none`, or the name of one of its `contexts`.
        chat: prompts are conversations in the tokenizer's chat template.
        system: their system message.
        shots: answered questions to show before each question.
        num_shots: how many of them, those that are the question itself left out; None for all.
        label: what it is called; None for its adapter's folder, or as much of the path as tells it apart.
        layers: the head reads after so many layers, or such a share of them, and no layer beyond is read;
            None for all, or as many as the adapter's folder says it was trained on.
        layers_norm: whether the final norm is applied there; None as the adapter's folder says, else it is.
        labels: file that names the labels of a classifier; None for the names that its folder has.
    """

    model: Path
    adapter: Path | None = None
    head: str = "auto"
    template: str | Template | None = None
    debias: DebiasName = "none"
    debiasing: DebiasSettings = field(default_factory=DebiasSettings)
    normalize: Normalization = DEFAULT_NORMALIZATION
    max_tokens: int | None = None
    context: str = FROM_QUESTION
    chat: bool = False
    system: str | None = None
    shots: tuple[Question, ...] = ()
    num_shots: int | None = None
    label: str | None = None
    labels: Path | None = None
    layers: float | None = None
    layers_norm: bool | None = None

    @property
    def name(self) -> str:
        """What its column in scores.parquet is called: its label, its adapter's folder, or `base`."""
        if self.label is not None:
            return self.label
        return BASE_NAME if self.adapter is None else self.adapter.resolve().name

    @property
    def prompting(self) -> Member:
        """The member without what tells it from others of a sweep, which read the same prompts."""
        return replace(self, adapter=None, label=None)

    def read(self, questions: Sequence[Question]) -> Sequence[Question]:
        """The questions with the contexts that this member is given.

        Raises:
            InputError: a question without the context that the member names.
        """
        if self.context == FROM_QUESTION:
            return questions
        return [replace(question, context=self._context_of(question)) for question in questions]

    def _context_of(self, question: Question) -> str:
        named = {NO_CONTEXT: ""} | dict(question.contexts)
        if self.context not in named:
            raise InputError(
                f"Member.context: question {question.id!r} has no context {self.context!r}; expected "
                f"{FROM_QUESTION} or one of {', '.join(named)}"
            )
        return named[self.context]


def _check_types(members: Sequence[Member]) -> None:
    if not isinstance(members, Sequence):
        raise InputError(f"members: {shown(members)}; expected a list of Member")
    for member in members:
        if not isinstance(member, Member):
            raise InputError(f"members: {shown(member)} is no Member")
        check_fields(member, Member, {"Template": Any})
        unanswered = next((shot for shot in member.shots if shot.answer is None), None)
        if unanswered is not None:
            raise InputError(
                f"Member.shots: question {unanswered.id!r} has no answer; expected answered ones"
            )


def _refuse_repeated_adapters(members: Sequence[Member]) -> None:
    first: dict[tuple[Path, Member], Path] = {}
    for member in members:
        if member.adapter is None:
            continue
        other = first.setdefault((member.adapter.resolve(), member.prompting), member.adapter)
        if other is not member.adapter:
            raise InputError(
                f"--adapter: {other} and {member.adapter} are one folder; expected different ones"
            )


def name_members(members: Sequence[Member]) -> list[Member]:
    """The members, with labels where adapters' folders have one name: the shortest paths that differ.

    The paths are the given ones, so that a symlink's name counts; `runs/r1/adapter` and `runs/r2/adapter`
    become `r1/adapter` and `r2/adapter`.
    """
    num_called = Counter(member.name for member in members)
    alike: dict[str, list[Path]] = {}
    for member in members:
        if member.label is None and member.adapter is not None and num_called[member.name] > 1:
            alike.setdefault(member.name, []).append(member.adapter.absolute())
    shown = {path: name for paths in alike.values() for path, name in _shortest_names(paths).items()}
    return [
        replace(member, label=shown[member.adapter.absolute()])
        if member.adapter is not None and member.label is None and member.name in alike
        else member
        for member in members
    ]


def _shortest_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The paths' last parts, as many as tell them apart."""
    for num_parts in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-num_parts:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(paths, names, strict=True))
    return {path: str(path) for path in paths}


def group_members(members: Sequence[Member]) -> list[list[Member]]:
    """Members that share model and prompts, and so a sweep, together; in order of first appearance.

    Raises:
        InputError: no member, a setting of another type, two of one name, or an adapter that is given twice.
    """
    if not members:
        raise InputError("members: none given; expected at least one")
    _check_types(members)
    _refuse_repeated_adapters(members)
    members = name_members(members)
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        what = "adapters" if all(member.adapter for member in members) else "members"
        raise InputError(f"--adapter: two {what} are called {twice!r}; expected different ones")
    check_names(names)
    groups: dict[tuple[Member, bool], list[Member]] = {}
    for member in members:
        groups.setdefault((member.prompting, member.adapter is None), []).append(member)
    return list(groups.values())


def check_names(names: Sequence[str]) -> None:
    """Raises InputError where a member is called as results call what another's head gives beside scores."""
    kept_as = {f"{name}_{beside}": name for name in names for beside in BESIDE_SCORES}
    clash = next((name for name in names if name in kept_as), None)
    if clash is not None:
        raise InputError(
            f"member {clash!r}: results call so what member {kept_as[clash]!r} has beside its scores; "
            "expected another name"
        )


def group_bases(groups: Sequence[list[Member]]) -> list[list[list[Member]]]:
    """Groups of members whose layers are read once for all of them together: one model, cut alike."""
    bases: dict[tuple[Path, float | None, bool | None], list[list[Member]]] = {}
    for group in groups:
        first = group[0]
        bases.setdefault((first.model.resolve(), first.layers, first.layers_norm), []).append(group)
    return list(bases.values())
