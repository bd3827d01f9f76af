"""Which figures of a profile nobody has measured. Knows no plans."""

from __future__ import annotations

from strata.engine.machine.profile import MachineProfile

ASSUMED, REPORTED, MEASURED = "assumed", "reported", "measured"
"""The first two are how the source of a figure begins that strata has not measured."""


def provenance_of(profile: MachineProfile, way: str) -> str:
    """Whether the rate of a way of computing is assumed, reported by others, or measured."""
    source = profile.source.get(f"compute.{way}.linear_flop_per_s", "")
    return next((kind for kind in (ASSUMED, REPORTED) if source.startswith(kind)), MEASURED)


def assumption_of(profile: MachineProfile, way: str) -> str | None:
    """What a way of computing is assumed to reach, and why; None where somebody has measured it.

    Args:
        profile: of a machine.
        way: a dtype, or "int8".
    """
    if provenance_of(profile, way) != ASSUMED:
        return None
    source = profile.source[f"compute.{way}.linear_flop_per_s"]
    rate = profile.compute[way].layer.linear_flop_per_s / 1e12
    return f"profile {profile.name}: {rate:.0f} T/s in {way} are {source}"
