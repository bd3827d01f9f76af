"""Prefix trees: token sequences merged into one trie, its tokens in depth-first order (the *stream*).

Shapes and data flow: sequences (token ids [L_i] int32, any number, any order) are sorted; each one then adds
to the stream only the tokens after its longest common prefix with the sequence before it, as one *run*. What
a token sees is a *path*: stream intervals from the root to itself. Token t of run r sees `paths[r]` clipped
at t. There are as many stream tokens as trie nodes (a node here is one token), which is what a sweep
computes.
A sequence may hold siblings (see siblings.py): the tree is the same trie of the whole sequences, each token
told apart by the part it is in; siblings are runs of their own, whose paths leave out the ones before them.
Independent check: a dictionary-of-dictionaries trie, and every path spelled out equals its sequence (tests).
Knows nothing of questions, models or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strata.engine.tree.intervals import (
    Intervals,
    clip_path,
    clip_stream,
    count,
    indexes,
    join_intervals,
    slice_path,
)
from strata.engine.tree.siblings import (
    check_siblings,
    cut_parts,
    sibling_marks,
    sibling_positions,
    visible_spans,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixTree:
    """A trie of token sequences as a stream of T tokens in R runs.

    Attributes:
        token_ids: [T] int32, depth-first order.
        position_ids: [T] int32, the depth of each token (0 for a root token), less behind siblings.
        run_starts: [R + 1] int64, stream index at which each run begins; the last entry is T.
        paths: for each run the stream intervals that its last token sees, in order of depth.
        chains: for each run the stream intervals from the root to the run's end, all siblings included: what
            later runs may see of the stream so far. Where there are no siblings, `paths`.
        sequence_paths: for each of the sequences given, its intervals; their lengths add up to the
            sequence's.
        tree_starts: [Q] int64, stream index at which each tree of a forest begins; None for one tree.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    run_starts: np.ndarray
    paths: tuple[Intervals, ...]
    chains: tuple[Intervals, ...]
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


def build_prefix_tree(
    sequences: Sequence[np.ndarray], siblings: Sequence[Intervals] | None = None
) -> PrefixTree:
    """Merges token sequences into one trie.

    Args:
        sequences: arrays [L_i] of non-negative token ids, each with at least one token; repeats are allowed.
        siblings: for each sequence the spans of it that do not see each other; None for none.

    Raises:
        ValueError: no sequences, an empty one, or siblings that do not follow one another.
    """
    if not len(sequences) or min(len(sequence) for sequence in sequences) == 0:
        raise ValueError("a prefix tree needs at least one sequence, and every sequence at least one token")
    all_spans = siblings or [()] * len(sequences)
    keyed = _pair_with_marks(sequences, all_spans) if any(all_spans) else sequences
    order = sorted(range(len(sequences)), key=lambda index: np.asarray(keyed[index], ">i4").tobytes())
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    starts, paths, chains = [0], [], []
    sequence_paths: list[Intervals] = [()] * len(sequences)
    previous = np.asarray(keyed[order[0]][:0])
    chain: Intervals = ()
    for index in order:
        sequence, spans = np.asarray(sequences[index], np.int32), all_spans[index]
        shared = common_prefix_length(previous, keyed[index])
        chain = clip_path(chain, shared)
        if shared < len(sequence):
            tokens.append(sequence[shared:])
            positions.append(sibling_positions(len(sequence), spans)[shared:])
        for first, last in cut_parts(shared, len(sequence), spans) if shared < len(sequence) else ():
            start, end = starts[-1], starts[-1] + last - first
            chain = join_intervals((*chain, (start, end)))
            starts.append(end)
            chains.append(chain)
            paths.append(slice_path(chain, visible_spans(last, spans)) if spans else chain)
        sequence_paths[index] = chain
        previous = keyed[index]
    return PrefixTree(
        token_ids=np.concatenate(tokens),
        position_ids=np.concatenate(positions),
        run_starts=np.asarray(starts, np.int64),
        paths=tuple(paths),
        chains=tuple(chains),
        sequence_paths=tuple(sequence_paths),
    )


def count_visible(tree: PrefixTree, window: int | None = None) -> np.ndarray:
    """[T] int64, how many keys each token sees, itself included; in a window, those fewer than W back."""
    positions = tree.position_ids.astype(np.int64)
    visible = positions + 1 if window is None else np.minimum(positions + 1, window)
    for run, path in enumerate(tree.paths):
        start, end = int(tree.run_starts[run]), int(tree.run_starts[run + 1])
        if count(path) == positions[end - 1] + 1:
            continue
        before = np.sort(positions[indexes(clip_stream(path, start))])
        visible[start:end] = len(before) + np.arange(1, end - start + 1)
        if window is not None:
            hidden = np.searchsorted(before, positions[start:end] - window, side="right")
            visible[start:end] = len(before) - hidden + np.minimum(np.arange(1, end - start + 1), window)
    return visible


def _pair_with_marks(sequences: Sequence[np.ndarray], siblings: Sequence[Intervals]) -> list[np.ndarray]:
    """[L, 2] of each sequence: tokens are one node only where the parts that they are in are the same."""
    paired = []
    for sequence, spans in zip(sequences, siblings, strict=True):
        check_siblings(spans, len(sequence))
        marks = sibling_marks(len(sequence), spans)
        paired.append(np.stack([marks, np.asarray(sequence, np.int32)], axis=1))
    return paired


def join_trees(trees: Sequence[PrefixTree]) -> PrefixTree:
    """Trees one behind another as one stream, a forest: what they have in common stays apart."""
    starts = np.cumsum([0, *(tree.num_tokens for tree in trees)])
    pairs = list(zip(trees, starts.tolist(), strict=False))
    return PrefixTree(
        token_ids=np.concatenate([tree.token_ids for tree in trees]),
        position_ids=np.concatenate([tree.position_ids for tree in trees]),
        run_starts=np.concatenate([*(tree.run_starts[:-1] + first for tree, first in pairs), starts[-1:]]),
        paths=tuple(_moved(path, first) for tree, first in pairs for path in tree.paths),
        chains=tuple(_moved(chain, first) for tree, first in pairs for chain in tree.chains),
        sequence_paths=tuple(_moved(path, first) for tree, first in pairs for path in tree.sequence_paths),
        tree_starts=starts[:-1],
    )


def _moved(path: Intervals, offset: int) -> Intervals:
    return tuple((start + offset, end + offset) for start, end in path)


def common_prefix_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading tokens two sequences share; of [L, 2], how many leading pairs."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    if differs.ndim > 1:
        differs = differs.any(axis=1)
    return int(np.argmax(differs)) if differs.any() else length
