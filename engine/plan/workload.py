"""The size of a job: what the planner knows of a tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from strata.engine.plan.costs import ModelCosts, sweep_flops


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStream:
    """The tokens of a prefix tree: ids and positions [T], and `scored` [S], the indexes that are read out.

    `visible` says how many keys [T] each sees under a window; None for all positions up to its own.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    scored: np.ndarray
    visible: Callable[[int | None], np.ndarray] | None = None

    def count_visible(self, window: int | None) -> np.ndarray:
        """[T] keys that each token sees."""
        if self.visible is not None:
            return self.visible(window)
        seen = self.position_ids.astype(np.int64) + 1
        return seen if window is None else np.minimum(seen, window)


def join_streams(streams: Sequence[TokenStream]) -> TokenStream:
    """The tokens of several trees, one tree after the other."""
    starts = np.cumsum([0, *(len(stream.token_ids) for stream in streams)])
    return TokenStream(
        token_ids=np.concatenate([stream.token_ids for stream in streams]),
        position_ids=np.concatenate([stream.position_ids for stream in streams]),
        scored=np.concatenate(
            [stream.scored + start for stream, start in zip(streams, starts[:-1], strict=True)]
        ),
        visible=lambda window: np.concatenate([stream.count_visible(window) for stream in streams]),
    )


@dataclass(frozen=True, kw_only=True)
class SideBytes:
    """Bytes that a group reads beside its layers: final norm (once), head, one row of the embedding."""

    norm: int
    head: int
    embedding_row: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The size of a job: what the planner knows of a tree.

    `distinct_tokens` are distinct token ids of the job; `head_bytes` is what a group's head reads of the
    checkpoint.
    """

    num_tokens: int
    num_scored: int
    longest_branch_tokens: int
    distinct_tokens: int
    num_members: int
    gemm_flops: float
    attention_flops: float
    norm_bytes: int
    head_bytes: int
    embedding_row_bytes: int


def measure_workload(
    costs: ModelCosts, stream: TokenStream, side_bytes: SideBytes, *, num_members: int
) -> Workload:
    """The size of a tree's job."""
    gemm, attention = sweep_flops(costs, stream.position_ids, stream.scored, stream.visible)
    return Workload(
        num_tokens=len(stream.token_ids),
        num_scored=len(stream.scored),
        longest_branch_tokens=int(stream.position_ids.max()) + 1,
        distinct_tokens=len(np.unique(stream.token_ids)),
        num_members=num_members,
        gemm_flops=gemm * num_members,
        attention_flops=attention * num_members,
        norm_bytes=side_bytes.norm,
        head_bytes=side_bytes.head,
        embedding_row_bytes=side_bytes.embedding_row,
    )
