"""How a share of the GEMM roofline is put into words. Knows no measurement."""

from __future__ import annotations

QUICK = "measured quickly"
"""How `MachineRates.rates_from` begins where the roofline was measured in a fifth of a second."""


def describe_roofline(fraction: float, rates_from: str) -> str:
    """A share of the roofline with how far it can be trusted, in a few words.

    A run may well be faster than what was measured in a fifth of a second beside other processes: more than
    all of it says that the measurement was low, so no such share is told.

    Args:
        fraction: FLOP/s of the sweep over the roofline's.
        rates_from: where the roofline comes from: `MachineRates.rates_from`, or beside the sweep.
    """
    source = "measured in a fifth of a second: a rough guide" if rates_from.startswith(QUICK) else rates_from
    share = "all" if fraction >= 1 else f"{fraction:.0%}" if fraction >= 0.01 else "under 1%"
    return f"{share} of the GEMM roofline ({source})"
