"""Opens encoder members: config, headers, machine, tokenizer; refuses what an encoder cannot honour."""

from __future__ import annotations

from collections.abc import Sequence

from strata.engine.encoders.encoder import (
    first_weights_file,
    measure_encoder,
    read_encoder_config,
    stored_dtype,
)
from strata.engine.encoders.rows import EncoderTokenizer
from strata.engine.heads.loglik import DEFAULT_NORMALIZATION
from strata.engine.jobs.encoder_job import EncoderMembers
from strata.engine.jobs.job import Session
from strata.engine.machine.machine import StoredModel, choose_machine
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import unread_index


def open_encoder_members(
    members: Sequence[Member], settings: MachineSettings, session: Session
) -> EncoderMembers:
    """Opens members of one encoder; loads no weights.

    Args:
        members: they differ in their adapters only.
        settings: what of the machine they may use.
        session: of the caller.

    Raises:
        InputError: a file that is missing or broken, or a setting that an encoder cannot honour.
    """
    first = members[0]
    refuse_settings(first, settings, session)
    if (unread := unread_index(first.model)) is not None:
        session.warnings.say(unread)
    shape = measure_encoder(read_encoder_config(first.model))
    stored = StoredModel(
        dtype=stored_dtype(first.model),
        hidden_size=shape.hidden_size,
        file=first_weights_file(first.model),
    )
    machine = choose_machine(settings, stored, products=session.products)
    session.overrides.check_devices(machine.devices)
    return EncoderMembers(
        settings=tuple(members),
        shape=shape,
        writer=EncoderTokenizer(first.model, shape, first.max_tokens, session.warnings),
        machine=machine,
        session=session,
    )


def refuse_settings(member: Member, settings: MachineSettings, session: Session) -> None:
    """Refuses what has no meaning for an encoder, or is not done for one."""
    overrides = session.overrides
    for flag, given, expected in (
        (f"--head {member.head}", member.head != "auto", "auto: its multiple-choice head"),
        (f"--debias {member.debias}", member.debias != "none", "none: its rows show one option each"),
        (f"--normalize {member.normalize}", member.normalize != DEFAULT_NORMALIZATION, "none given"),
        ("--chat", member.chat, "a run without it"),
        ("--system", member.system is not None, "a run without it"),
        ("--shots", bool(member.shots), "a run without it"),
        (f"--template {member.template}", member.template is not None, "none: its layout is fixed"),
        ("--layers", member.layers is not None, "a run without it: its head is at the end"),
        ("--layers-norm", member.layers_norm is not None, "auto"),
        ("--dtype int8", settings.dtype == "int8", "float32, bfloat16 or float16"),
        ("--verify", settings.verify, "a run without it"),
        ("--cache-dir", settings.cache_dir is not None, "a run without it: weights are read once"),
        ("--num-groups", overrides.num_groups is not None, "a run without it"),
        ("--resident-layers", overrides.resident_layers is not None, "a run without it: all layers stay"),
        ("--hidden-store", overrides.hidden_store is not None, "a run without it"),
    ):
        if given:
            raise InputError(f"{flag}: {member.model} is an encoder; expected {expected}")
    if member.max_tokens is not None and member.max_tokens < 1:
        raise InputError(f"--max-tokens {member.max_tokens}: expected at least 1")
