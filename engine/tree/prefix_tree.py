"""Prefix trees: token sequences merged into one trie, its tokens in depth-first order (the *stream*).

Shapes and data flow: sequences (token ids [L_i] int32, any number, any order) are sorted; each one then adds
to the stream only the tokens after its longest common prefix with the sequence before it, as one *run*. What
a token sees is a *path*: stream intervals from the root to itself. Token t of run r sees `paths[r]` clipped
at t. There are as many stream tokens as trie nodes (a node here is one token), which is what a sweep
computes.
Independent check: a dictionary-of-dictionaries trie, and every path spelled out equals its sequence (tests).
Knows nothing of questions, models or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strata.engine.tree.intervals import Intervals, clip_path, join_intervals


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixTree:
    """A trie of token sequences as a stream of T tokens in R runs.

    Attributes:
        token_ids: [T] int32, depth-first order.
        position_ids: [T] int32, the depth of each token (0 for a root token).
        run_starts: [R + 1] int64, stream index at which each run begins; the last entry is T.
        paths: for each run the stream intervals from the root to the run's end, in order of depth.
        sequence_paths: for each of the sequences given, its intervals; their lengths add up to the
            sequence's.
        tree_starts: [Q] int64, stream index at which each tree of a forest begins; None for one tree.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    run_starts: np.ndarray
    paths: tuple[Intervals, ...]
    sequence_paths: tuple[Intervals, ...]
    tree_starts: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream, the trie's nodes."""
        return len(self.token_ids)

    @property
    def num_runs(self) -> int:
        """Runs of the stream."""
        return len(self.paths)

    def locate(self, sequence: int, position: int) -> int:
        """Stream index of the token at `position` of a sequence; IndexError past its end."""
        depth = 0
        for start, end in self.sequence_paths[sequence]:
            if position < depth + end - start:
                return start + position - depth
            depth += end - start
        raise IndexError(f"position {position} of a sequence of {depth} tokens")

    def spell(self, sequence: int) -> np.ndarray:
        """Token ids [L] of a sequence, read back from the stream."""
        return np.concatenate([self.token_ids[start:end] for start, end in self.sequence_paths[sequence]])


def build_prefix_tree(sequences: Sequence[np.ndarray]) -> PrefixTree:
    """Merges token sequences into one trie.

    Args:
        sequences: arrays [L_i] of non-negative token ids, each with at least one token; repeats are allowed.

    Raises:
        ValueError: no sequences, or an empty one.
    """
    if not len(sequences) or min(len(sequence) for sequence in sequences) == 0:
        raise ValueError("a prefix tree needs at least one sequence, and every sequence at least one token")
    order = sorted(range(len(sequences)), key=lambda index: np.asarray(sequences[index], ">i4").tobytes())
    tokens: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    starts, paths = [0], []
    sequence_paths: list[Intervals] = [()] * len(sequences)
    previous = np.empty(0, np.int32)
    path: Intervals = ()
    for index in order:
        sequence = np.asarray(sequences[index], np.int32)
        shared = common_prefix_length(previous, sequence)
        path = clip_path(path, shared)
        if shared < len(sequence):
            start, end = starts[-1], starts[-1] + len(sequence) - shared
            tokens.append(sequence[shared:])
            depths.append(np.arange(shared, len(sequence), dtype=np.int32))
            path = join_intervals((*path, (start, end)))
            starts.append(end)
            paths.append(path)
        sequence_paths[index] = path
        previous = sequence
    return PrefixTree(
        token_ids=np.concatenate(tokens),
        position_ids=np.concatenate(depths),
        run_starts=np.asarray(starts, np.int64),
        paths=tuple(paths),
        sequence_paths=tuple(sequence_paths),
    )


def join_trees(trees: Sequence[PrefixTree]) -> PrefixTree:
    """Trees one behind another as one stream, a forest: what they have in common stays apart."""
    starts = np.cumsum([0, *(tree.num_tokens for tree in trees)])
    pairs = list(zip(trees, starts.tolist(), strict=False))
    return PrefixTree(
        token_ids=np.concatenate([tree.token_ids for tree in trees]),
        position_ids=np.concatenate([tree.position_ids for tree in trees]),
        run_starts=np.concatenate([*(tree.run_starts[:-1] + first for tree, first in pairs), starts[-1:]]),
        paths=tuple(_moved(path, first) for tree, first in pairs for path in tree.paths),
        sequence_paths=tuple(_moved(path, first) for tree, first in pairs for path in tree.sequence_paths),
        tree_starts=starts[:-1],
    )


def _moved(path: Intervals, offset: int) -> Intervals:
    return tuple((start + offset, end + offset) for start, end in path)


def common_prefix_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading tokens two sequences share."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(np.argmax(differs)) if differs.any() else length
