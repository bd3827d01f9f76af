"""Opens decoder members: checkpoint headers, adapters, head, template, machine and modules, in that order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from strata.engine.adapters.adapter_file import read_adapter
from strata.engine.adapters.lora import Adapter
from strata.engine.heads.debiasing.registry import choose_debias
from strata.engine.heads.head import Head
from strata.engine.heads.loglik import DEFAULT_NORMALIZATION, LogLikelihood, with_normalization
from strata.engine.heads.registry import AUTO, CLASSIFY, choose_head
from strata.engine.jobs.decoder_members import DecoderMembers
from strata.engine.jobs.decoder_notices import left_aside
from strata.engine.jobs.job import Session
from strata.engine.machine.card_products import use_kept_products
from strata.engine.machine.machine import Machine, StoredModel, choose_machine
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.cut import Cut, choose_cut
from strata.engine.members.labels import check_shared, label_names
from strata.engine.members.member import Member
from strata.engine.members.readings import declared_head, score_shape
from strata.engine.model.open_model import Computing, OpenModel, SideAdapter, open_model
from strata.engine.model.window import model_window
from strata.engine.prompts.render import PromptSettings
from strata.engine.prompts.templates import load_template
from strata.engine.types import InputError
from strata.engine.weights.byte_sources import ByteSource
from strata.engine.weights.checkpoint import Checkpoint, open_checkpoint
from strata.engine.weights.checkpoint_folder import unread_index
from strata.engine.weights.checksums import read_checksums
from strata.engine.weights.first_layers import keep_layers
from strata.engine.weights.formats.registry import ignored_settings
from strata.engine.weights.tensor_reader import TensorReader


@dataclass(frozen=True, kw_only=True, eq=False)
class _Base:
    """One checkpoint, opened for all its members.

    Attributes:
        checkpoint: cut after the last layer that is computed.
        cut: where that is.
        adapters: those of each group of members.
        machine: what they run on.
        model: the modules, and everybody who is swept.
        sides: what is swept for an adapter's folder, None for the base model alone.
    """

    checkpoint: Checkpoint
    cut: Cut
    adapters: tuple[tuple[Adapter, ...], ...]
    machine: Machine
    model: OpenModel
    sides: dict[Path | None, SideAdapter]


def open_decoder_members(
    members: Sequence[Member],
    settings: MachineSettings,
    session: Session,
    source: ByteSource,
    profile: str | None = None,
) -> DecoderMembers:
    """Opens members that share their prompts; see `open_decoder_groups`."""
    (opened,) = open_decoder_groups([members], settings, session, source, profile)
    return opened


def open_decoder_groups(
    groups: Sequence[Sequence[Member]],
    settings: MachineSettings,
    session: Session,
    source: ByteSource,
    profile: str | None = None,
) -> list[DecoderMembers]:
    """Opens members of one decoder; reads no weights.

    Args:
        groups: the members of a group differ in their adapters only; those of different groups have the model
            and the layers to compute in common.
        settings: what of the machine they may use.
        session: of the caller.
        source: where the checkpoint's bytes come from.
        profile: plan for the machine that this profile describes; None for this one.

    Returns:
        Each group, opened, on one model.

    Raises:
        InputError: a file that is missing, broken or does not fit the others, or a setting that cannot be
            honoured.
    """
    base = _open_base(groups, settings, session, source, profile)
    return [
        _ask(base, group, adapters, settings, session)
        for group, adapters in zip(groups, base.adapters, strict=True)
    ]


def _open_base(
    groups: Sequence[Sequence[Member]],
    settings: MachineSettings,
    session: Session,
    source: ByteSource,
    profile: str | None,
) -> _Base:
    members = [member for group in groups for member in group]
    checkpoint = open_checkpoint(members[0].model)
    num_stored_layers = checkpoint.num_layers
    cut = choose_cut(members, num_stored_layers)
    if cut.num_layers is not None:
        checkpoint = keep_layers(checkpoint, cut.num_layers)
    for line in (*ignored_settings(checkpoint.quantization), *left_aside(checkpoint)):
        session.warnings.say(line)
    if (unread := unread_index(checkpoint.path)) is not None:
        session.warnings.say(unread)
    adapters = tuple(_read_adapters(group, checkpoint, num_stored_layers) for group in groups)
    file = checkpoint.require("embed_tokens.weight").parts[0][0].file
    stored = StoredModel(dtype=checkpoint.stored_dtype, hidden_size=checkpoint.config.hidden_size, file=file)
    machine = choose_machine(settings, stored, profile, session.products)
    if machine.notice:
        session.warnings.say(machine.notice)
    session.overrides.check_devices(machine.devices)
    if machine.linear == "int8" and profile is None:
        use_kept_products(machine.devices)
    computing = Computing(devices=machine.worker_devices, dtype=machine.dtype, int8=machine.linear == "int8")
    checksums = read_checksums(checkpoint.path) if settings.verify else None
    distinct = {adapter.path: adapter for of_group in adapters for adapter in of_group}
    model = open_model(
        checkpoint,
        tuple(distinct.values()),
        computing,
        TensorReader(source, checksums),
        with_base=bool(distinct) and not all(adapters),
    )
    model.normalizes = cut.normalizes
    names: tuple[Path | None, ...] = (*distinct, None) if distinct else (None,)
    sides = dict(zip(names, model.members, strict=False))
    return _Base(checkpoint=checkpoint, cut=cut, adapters=adapters, machine=machine, model=model, sides=sides)


def _ask(
    base: _Base,
    members: Sequence[Member],
    adapters: tuple[Adapter, ...],
    settings: MachineSettings,
    session: Session,
) -> DecoderMembers:
    """The members of a group, with their head and their prompts."""
    first, checkpoint = members[0], base.checkpoint
    head = _choose_head(first, checkpoint, adapters, session)
    window = model_window(checkpoint.config)
    if window.note:
        session.warnings.say(window.note)
    debias = choose_debias(first.debias, first.debiasing)
    debias.suits(head)
    prompting = PromptSettings(
        template=load_template(
            first.template, head=head, chat=first.chat, lists_options=debias.masks_options
        ),
        head=head,
        debias=debias,
        max_tokens=first.max_tokens,
        window=window.num_tokens,
        chat=first.chat,
        system=first.system,
        shots=tuple(first.read(first.shots)),
        num_shots=first.num_shots,
    )
    paths: Sequence[Path | None] = [adapter.path for adapter in adapters] or [None]
    sides = tuple(
        replace(base.sides[path], name=member.name) for path, member in zip(paths, members, strict=True)
    )
    return DecoderMembers(
        settings=tuple(members),
        dtype=settings.dtype,
        adapters=adapters,
        head=head,
        prompting=prompting,
        machine=base.machine,
        model=replace(base.model, members=sides),
        session=session,
        cut=base.cut,
        labels=_name_labels(head, members, checkpoint, adapters),
        is_verified=not settings.verify,
    )


def _choose_head(
    member: Member, checkpoint: Checkpoint, adapters: Sequence[Adapter], session: Session
) -> Head:
    shape = score_shape(checkpoint, adapters)
    if shape is None:
        _refuse_absent_head(member.head, declared_head(checkpoint, adapters))
    where = f"{checkpoint.path} and its adapters"
    chosen = choose_head(member.head, shape, checkpoint.config.hidden_size, where)
    head = with_normalization(chosen, member.normalize)
    if member.normalize != DEFAULT_NORMALIZATION and not isinstance(head, LogLikelihood):
        session.warnings.say(f"--normalize {member.normalize} has no effect on head {head.name}")
    return head


def _refuse_absent_head(setting: str, declared: str | None) -> None:
    """Refuses to score without a head that was trained, unless the user names another."""
    if setting == AUTO and declared is not None:
        raise InputError(
            f"{declared} declares a trained head, but no score.weight is in the file; "
            "expected one, or --head with the name of a head that needs none"
        )


def _name_labels(
    head: Head, members: Sequence[Member], checkpoint: Checkpoint, adapters: Sequence[Adapter]
) -> tuple[tuple[str, ...], ...]:
    """The label names of each member of head classify; nothing for other heads.

    Raises:
        InputError: names that are broken, or that members do not share.
    """
    if head.name != CLASSIFY:
        return ()
    names = []
    for member, adapter in zip(members, adapters or (None,), strict=True):
        shape = score_shape(checkpoint, () if adapter is None else (adapter,))
        assert shape is not None, "the head has been found to fit"
        names.append(label_names(checkpoint, adapter, shape[0], member.labels))
    check_shared(names)
    return tuple(names)


def _read_adapters(
    members: Sequence[Member], checkpoint: Checkpoint, num_stored_layers: int
) -> tuple[Adapter, ...]:
    """The members' adapters, none for the base model alone.

    Raises:
        InputError: one that does not fit, or score heads that only some of them bring.
    """
    paths = [member.adapter for member in members if member.adapter is not None]
    if paths and len(paths) < len(members):
        raise InputError(
            f"members of {checkpoint.path}: some have an adapter and some have none; expected all or none"
        )
    adapters = tuple(
        read_adapter(
            path,
            hidden_size=checkpoint.config.hidden_size,
            num_layers=num_stored_layers,
            num_kept=checkpoint.num_layers,
        )
        for path in paths
    )
    with_score = [adapter.name for adapter in adapters if adapter.score is not None]
    if with_score and len(with_score) < len(adapters):
        missing = next(adapter.name for adapter in adapters if adapter.score is None)
        raise InputError(
            f"--adapter: {with_score[0]!r} brings a score head but {missing!r} does not; expected all or none"
        )
    widths = {adapter.score.shape[1]: adapter.name for adapter in adapters if adapter.score is not None}
    if len(widths) > 1:
        told = ", ".join(f"{name!r} of {width}" for width, name in sorted(widths.items()))
        raise InputError(f"--adapter: score heads of different widths ({told}); expected the same of all")
    return adapters
