"""What a run says of micro-batches that were computed otherwise than planned. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence


def describe_overflows(overflows: Sequence[tuple[int, int]]) -> str:
    """What to say of (layer, first row) of micro-batches that were computed in float32; empty for none."""
    if not overflows:
        return ""
    layers = sorted({layer for layer, _ in overflows})
    return (
        f"{len(overflows)} micro-batch(es) were not finite in the compute dtype, "
        f"first in layer {layers[0]}; they were computed in float32 from there on"
    )


def describe_halvings(halvings: Sequence[tuple[int, int]]) -> str:
    """What to say of (layer, tokens) of micro-batches that were cut to fit; empty for none."""
    if not halvings:
        return ""
    least = min(tokens for _, tokens in halvings)
    return (
        f"memory ran out {len(halvings)} time(s), first in layer {min(layer for layer, _ in halvings)}: "
        f"micro-batches were halved down to {least} tokens; --micro-batch-tokens {least} fits from the start"
    )
