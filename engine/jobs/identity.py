"""Which files members score with, so that an interrupted run is not gone on with after they were replaced."""

from __future__ import annotations

from collections.abc import Sequence

from strata.engine.files import identify_files
from strata.engine.members.member import Member
from strata.engine.weights.stored_checkpoint import stored_files


def identify_members(members: Sequence[Member]) -> list[str]:
    """Place, size and time of change of the weights of members of one model, and of their adapters."""
    adapters = [member.adapter for member in members if member.adapter is not None]
    files = stored_files(members[0].model)
    files += [file for adapter in adapters for file in sorted(adapter.glob("*.safetensors"))]
    return identify_files(files)
