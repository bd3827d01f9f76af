"""Prefix attention as two batched GEMMs and a softmax a tile: the fast way on CPUs.

The query heads that share a kv head are folded into the rows, so that a tile of b rows is a [K, G*b, C] GEMM, which
reaches the machine's GEMM rate (stock CPU SDPA does not: about 100 against 180-220 useful GFLOP/s in bfloat16 on two
Zen 4 cores, causal, 1,200 keys). Scores are computed in the compute dtype, softmax accumulates in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from strata.kernels.prefix_attention.tile import Tile, gather_keys


def attend_blocked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tiles: Sequence[Tile],
    scaling: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of every row over its tile's keys.

    Args:
        query: [N, T, H]; every row must be in exactly one tile.
        key: [K, C, H], the key space; N a multiple of K.
        value: [K, C, H].
        tiles: the work.
        scaling: factor on q k^T.
        softcap: scores become softcap * tanh(scores / softcap).

    Returns:
        [T, N, H] in the query's dtype. Peak extra memory: one tile's scores, N * rows * keys elements.
    """
    num_heads, num_rows, head_dim = query.shape
    output = query.new_empty(num_rows, num_heads, head_dim)
    for tile in tiles:
        start, end = tile.rows
        output[start:end] = _attend_tile(query[:, start:end], key, value, tile, scaling, softcap)
    return output


def _attend_tile(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tile: Tile,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    num_heads, rows, head_dim = query.shape
    num_kv_heads = key.shape[0]
    groups = num_heads // num_kv_heads
    folded = (query * scaling).reshape(num_kv_heads, groups * rows, head_dim)
    scores = torch.bmm(folded, gather_keys(key, tile).transpose(1, 2))
    if softcap is not None:
        scores = (scores.float() / softcap).tanh_().mul_(softcap)
    if tile.num_masked:
        hidden = ~tile.visible_mask(query.device)
        masked = scores.view(num_kv_heads, groups, rows, tile.num_keys)[..., tile.num_unmasked :]
        masked.masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    attended = torch.bmm(weights, gather_keys(value, tile))
    return attended.view(num_heads, rows, head_dim).transpose(0, 1)
