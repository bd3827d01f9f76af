"""What a run says of what is computed otherwise than was asked for or planned, or cannot be scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.engine.tree.targets import TargetTable
from strata.engine.types import Prompt

NUM_NAMED = 3


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


def describe_not_finite(what: str, ids: Sequence[str], dtype: str) -> str:
    """What to say where scores of questions would be NaN: which questions, and what to try."""
    named = ", ".join(repr(one) for one in ids[:NUM_NAMED])
    more = f" and {len(ids) - NUM_NAMED} more" if len(ids) > NUM_NAMED else ""
    advice = "" if dtype == "float32" else "; float32 may hold what overflows (--dtype float32)"
    return f"{what} (question id {named}{more}){advice}"


def ids_of_readouts(prompts: Sequence[Prompt], targets: TargetTable, streams: np.ndarray) -> list[str]:
    """Ids of the questions that read something of the given stream indexes [s]."""
    is_asked = np.isin(targets.scored[targets.rows], streams)
    owners = np.repeat(np.arange(len(prompts)), [len(prompt.branches) for prompt in prompts])
    return [prompts[index].question.id for index in np.unique(owners[targets.branches[is_asked]])]
