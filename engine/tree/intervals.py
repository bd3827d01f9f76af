"""Arithmetic on sets of stream indexes, kept as ascending half-open intervals. Knows no tree."""

from __future__ import annotations

import numpy as np

Intervals = tuple[tuple[int, int], ...]
"""Disjoint half-open ranges (start, end) of stream indexes."""


def clip_path(path: Intervals, depth: int) -> Intervals:
    """The first `depth` tokens of a path."""
    clipped = []
    for start, end in path:
        if depth <= 0:
            break
        clipped.append((start, min(end, start + depth)))
        depth -= end - start
    return tuple(clipped)


def slice_path(path: Intervals, spans: Intervals) -> Intervals:
    """The tokens of a path at these ascending depths [start, end)."""
    found = []
    depth = 0
    for start, end in path:
        for first, last in spans:
            low, high = max(first - depth, 0), min(last - depth, end - start)
            if low < high:
                found.append((start + low, start + high))
        depth += end - start
    return join_intervals(tuple(found))


def clip_stream(intervals: Intervals, end: int) -> Intervals:
    """The part of the intervals that lies before stream index `end`."""
    return tuple((a, min(b, end)) for a, b in intervals if a < end)


def join_intervals(intervals: Intervals) -> Intervals:
    """The same intervals with neighbours that touch made one; keeps the order."""
    joined: list[tuple[int, int]] = []
    for start, end in intervals:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif end > start:
            joined.append((start, end))
    return tuple(joined)


def union(*sets: Intervals) -> Intervals:
    """Stream indexes in any of the sets, as sorted intervals."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(
        interval for intervals in sets for interval in intervals if interval[0] < interval[1]
    ):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def subtract(intervals: Intervals, removed: Intervals) -> Intervals:
    """Stream indexes in sorted `intervals` but not in sorted `removed`."""
    kept = []
    for start, end in intervals:
        for cut_start, cut_end in removed:
            if cut_end <= start or cut_start >= end:
                continue
            if cut_start > start:
                kept.append((start, cut_start))
            start = cut_end
            if start >= end:
                break
        if start < end:
            kept.append((start, end))
    return tuple(kept)


def count(intervals: Intervals) -> int:
    """Number of stream indexes in disjoint intervals."""
    return sum(end - start for start, end in intervals)


def indexes(intervals: Intervals) -> np.ndarray:
    """The stream indexes themselves, [count] int64, in the order of the intervals."""
    if not intervals:
        return np.empty(0, np.int64)
    return np.concatenate([np.arange(start, end, dtype=np.int64) for start, end in intervals])
