"""Every backend on the trees that jobs are made of, from one token to a prefix of 8,000, in micro-batches.

Independent check: the float64 oracle under the mask that the sequences themselves give (each row sees the
tokens before it in its sequence). Long trees are compared on some of their rows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strata.engine.tree.intervals import indexes
from strata.engine.tree.lanes import MicroBatch, split_lanes
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree
from strata.engine.tree.tiles import tile_finder
from strata.kernels.prefix_attention.backend import AttentionSettings, Backend
from strata.kernels.prefix_attention.blocked import BLOCKED_ON_CPU, BLOCKED_ON_CUDA
from strata.kernels.prefix_attention.differentiable import DIFFERENTIABLE_ON_CPU
from strata.kernels.prefix_attention.flash_cpu import FlashOnCpu
from strata.kernels.prefix_attention.reference import reference_attention
from strata.kernels.prefix_attention.sdpa import SdpaBackend
from strata.kernels.prefix_attention.varlen import EFFICIENT, FLASH

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 2, 1, 16
MOST_ROWS = 64
SETTINGS = AttentionSettings(scaling=0.3)
BACKENDS: list[tuple[Backend, torch.dtype, float]] = [
    (BLOCKED_ON_CPU, torch.float32, 1e-5),
    (BLOCKED_ON_CUDA, torch.float32, 1e-5),
    (FlashOnCpu(), torch.float32, 1e-5),
    (FlashOnCpu(), torch.bfloat16, 2e-2),
    (DIFFERENTIABLE_ON_CPU, torch.float32, 1e-5),
    (SdpaBackend(), torch.float32, 1e-5),
    (EFFICIENT, torch.float32, 1e-5),
    (FLASH, torch.bfloat16, 2e-2),
]


def branches(prefix: int, *options: int) -> list[list[int]]:
    """Sequences of one question: a prefix, and options of some lengths that differ from their first token."""
    return [
        [*range(prefix), *(1_000_000 + 1_000 * number + token for token in range(length))]
        for number, length in enumerate(options)
    ]


SHAPES = {
    "one question": branches(40, 5, 7, 4),
    "one token": [[3]],
    "an empty branch": branches(30, 0, 6),
    "26 options of one token": branches(50, *[1] * 26),
    "a prefix of 8,000": branches(8_000, 3, 1),
    "two questions under opening words": [
        [7, 8, 9, question, *branch] for question in (1, 2) for branch in branches(20, 3, 4)
    ],
}


def micro_batches(sequences: list[list[int]], tokens: int) -> tuple[PrefixTree, tuple[MicroBatch, ...]]:
    tree = build_prefix_tree([np.array(sequence, np.int32) for sequence in sequences])
    ends = sorted({path[-1][1] - 1 for path in tree.sequence_paths})
    (lane,) = split_lanes(tree, np.array(ends, np.int64), 1, tokens)
    return tree, lane.micro_batches


def seen_by_row(tree: PrefixTree) -> dict[int, np.ndarray]:
    """Stream indexes that each token sees, from the sequences themselves."""
    seen = {}
    for path in tree.sequence_paths:
        streams = indexes(path)
        for depth, stream in enumerate(streams.tolist(), start=1):
            seen[stream] = streams[:depth]
    return seen


@pytest.mark.parametrize(
    ("backend", "dtype", "bound"), BACKENDS, ids=[f"{backend.name}-{dtype}" for backend, dtype, _ in BACKENDS]
)
@pytest.mark.parametrize("micro_batch_tokens", [7, 10_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, micro_batch_tokens, backend, dtype, bound):
    if shape == "a prefix of 8,000":
        micro_batch_tokens = max(micro_batch_tokens, 3_000)
    tree, batches = micro_batches(SHAPES[shape], micro_batch_tokens)
    seen, generator = seen_by_row(tree), torch.Generator().manual_seed(0)
    for batch in batches:
        key_space = indexes(batch.key_space)
        place = {stream: number for number, stream in enumerate(key_space.tolist())}
        key, value = torch.randn(2, NUM_KV_HEADS, len(key_space), HEAD_DIM, generator=generator).to(dtype)
        for scored in (False, True):
            streams = indexes(batch.rows)[batch.scored_rows] if scored else indexes(batch.rows)
            if not len(streams):
                continue
            query = torch.randn(NUM_HEADS, len(streams), HEAD_DIM, generator=generator).to(dtype)
            tiles = tile_finder(tree, batch, scored=scored)(backend.cut, None)
            attended = backend.attend(query, key, value, tiles, SETTINGS)
            assert attended.shape == (len(streams), NUM_HEADS, HEAD_DIM)
            rows = np.unique(np.linspace(0, len(streams) - 1, MOST_ROWS).astype(int)).tolist()
            visible = torch.zeros(len(rows), len(key_space), dtype=torch.bool)
            for number, row in enumerate(rows):
                visible[number, [place[index] for index in seen[int(streams[row])].tolist()]] = True
            exact = reference_attention(query[:, rows], key, value, visible, SETTINGS)
            assert float((attended[rows].double() - exact).abs().max()) < bound
