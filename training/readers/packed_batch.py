"""Examples packed for one call of a decoder: their prefix tree as a single micro-batch, and what is read off.

Shapes: T tree tokens, S scored rows, n targets, B branches. Questions that share a prefix are merged like
everything else in a tree. Independent check: each branch alone through transformers (tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from strata.engine.model.attention import AttentionCall, TilesOf
from strata.engine.tree.lanes import MicroBatch, split_lanes
from strata.engine.tree.prefix_tree import PrefixTree
from strata.engine.tree.targets import TargetTable, build_prompt_tree, build_target_table
from strata.engine.tree.tiles import tile_finder
from strata.training.types import Example


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """One micro-batch of training: all rows are in `batch`, none is carried.

    `targets` gives for each target of each branch its row among the S readouts, in ascending row order;
    `tiles` and `scored_tiles` are the attention tiles of all rows and of the scored ones, by window.
    """

    examples: tuple[Example, ...]
    tree: PrefixTree
    batch: MicroBatch
    targets: TargetTable
    device: torch.device
    tiles: TilesOf
    scored_tiles: TilesOf

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.tree.num_tokens

    @property
    def token_ids(self) -> torch.Tensor:
        """[T] int64 on the device."""
        return torch.from_numpy(self.tree.token_ids.astype(np.int64)).to(self.device)

    @property
    def position_ids(self) -> torch.Tensor:
        """[T] int64 on the device."""
        return torch.from_numpy(self.tree.position_ids.astype(np.int64)).to(self.device)

    @property
    def scored_rows(self) -> torch.Tensor:
        """[S] int64 on the device."""
        return torch.from_numpy(self.batch.scored_rows).to(self.device)

    def attention_call(self, mode: str = "all", key_values: torch.Tensor | None = None) -> AttentionCall:
        """A call of one layer's attention over the batch, with a backward pass; see `AttentionCall`."""
        return AttentionCall(
            tiles_of=self.scored_tiles if mode == "scored" else self.tiles,
            carried=None,
            mode=mode,
            differentiable=True,
            key_values=key_values,
        )


def pack_examples(examples: Sequence[Example], device: torch.device) -> PackedBatch:
    """Builds the tree of all branches of all examples."""
    prompts = [example.prompt for example in examples]
    tree = build_prompt_tree(prompts)
    targets = build_target_table(prompts, tree)
    (lane,) = split_lanes(tree, targets.scored, 1, tree.num_tokens)
    (batch,) = lane.micro_batches
    return PackedBatch(
        examples=tuple(examples),
        tree=tree,
        batch=batch,
        targets=targets,
        device=device,
        tiles=tile_finder(tree, batch, scored=False),
        scored_tiles=tile_finder(tree, batch, scored=True),
    )


def split_examples(examples: Sequence[Example], micro_batch_tokens: int) -> list[list[Example]]:
    """Consecutive examples in micro-batches of at most so many tree tokens, at least one example each."""
    parts: list[list[Example]] = []
    room = 0
    for example in examples:
        size = count_tokens(example)
        if not parts or size > room:
            parts.append([])
            room = micro_batch_tokens
        parts[-1].append(example)
        room -= size
    return parts


def count_tokens(example: Example) -> int:
    """Tree tokens of one example alone."""
    return build_prompt_tree([example.prompt]).num_tokens
