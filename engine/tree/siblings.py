"""Spans of a sequence that do not see each other: their positions, and what each of its tokens sees.

A sequence of L tokens may hold *siblings*: spans (start, end) that follow one another without a gap. All
begin at the position id of the first one, each sees what comes before the first and itself, and the tokens
behind the last see everything and go on behind the longest: a set of options, read in no order.

    tokens     | before ......... | sibling | sib | sibling .. | after ....
    positions  | 0 ........ P - 1 | P P+1 P+2 | P P+1 | P .. M - 1 | M M+1 ...

Source: McIlroy-Young et al., "Order-Independence Without Fine Tuning" (NeurIPS 2024), set-based prompting.
Knows no tree and no stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from strata.engine.tree.intervals import Intervals

BEHIND = -1
"""Mark of the tokens behind the siblings; those before have 0, those of the k-th sibling k."""


def check_siblings(siblings: Intervals, num_tokens: int) -> None:
    """Raises ValueError unless the spans are not empty, follow one another and lie in the sequence."""
    follow = all(end == start for (_, end), (start, _) in pairwise(siblings))
    if not follow or any(start >= end for start, end in siblings):
        raise ValueError(f"siblings {siblings}: expected spans with tokens, one right behind the other")
    if siblings and not 0 <= siblings[0][0] < siblings[-1][1] <= num_tokens:
        raise ValueError(f"siblings {siblings}: expected spans of a sequence of {num_tokens} tokens")


def sibling_marks(num_tokens: int, siblings: Intervals) -> np.ndarray:
    """[L] int32, the part that each token is in: sequences share a node while tokens and marks agree."""
    marks = np.zeros(num_tokens, np.int32)
    for number, (start, end) in enumerate(siblings, start=1):
        marks[start:end] = number
    if siblings:
        marks[siblings[-1][1] :] = BEHIND
    return marks


def sibling_positions(num_tokens: int, siblings: Intervals) -> np.ndarray:
    """[L] int32 position ids."""
    positions = np.arange(num_tokens, dtype=np.int32)
    if not siblings:
        return positions
    first, last = siblings[0][0], siblings[-1][1]
    for start, end in siblings:
        positions[start:end] -= start - first
    positions[last:] -= last - first - max(end - start for start, end in siblings)
    return positions


def cut_parts(start: int, end: int, siblings: Intervals) -> Iterator[tuple[int, int]]:
    """[start, end) of a sequence, cut where a sibling begins or ends."""
    for stop in sorted({place for span in siblings for place in span if start < place < end} | {end}):
        yield start, stop
        start = stop


def visible_spans(end: int, siblings: Intervals) -> Intervals:
    """Spans of the sequence that its token at `end - 1` sees, itself included."""
    for first, last in siblings:
        if first < end <= last:
            return ((0, siblings[0][0]), (first, end))
    return ((0, end),)
