"""Prefix attention with a backward pass: what training calls. Knows tiles, nothing of trees or models.

Forward keeps query, key, value, output and the log-sum-exp of every row; backward computes each tile's
weights again from it, so that no scores outlive their tile. With weights P, output O, upstream gradient dO:
    dV = P^T dO,  dS = P * (dO V^T - rowsum(dO * O)),  dQ = scaling dS K,  dK = scaling dS^T Q
and with soft-capping s -> c tanh(s / c), dS is multiplied by 1 - tanh^2. Source: Dao et al. 2022,
FlashAttention, appendix B.4. Independent check: `reference_attention` under autograd in float64; gradcheck.

Legend: T query rows, N query heads, K kv heads, G = N / K, H head dim, C key space, J a tile's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from strata.kernels.prefix_attention.backend import (
    CPU_CUT,
    CUDA_CUT,
    AttentionRequest,
    AttentionSettings,
    TileSize,
)
from strata.kernels.prefix_attention.tile import Tile, TileCut, gather_keys


@dataclass(frozen=True, kw_only=True)
class DifferentiableBackend:
    """Attention with a backward pass of its own.

    Attributes:
        name: of the backend.
        cut: how it wants its tiles.
        on_cuda: whether it is meant for CUDA or for everything else; it computes the same on both.
    """

    name: str
    cut: TileCut
    on_cuda: bool

    def takes(self, request: AttentionRequest) -> bool:
        """Anything, on its kind of device; what needs no gradients is better left to others."""
        return (request.device_type == "cuda") == self.on_cuda

    def scratch_bytes(self, size: TileSize, request: AttentionRequest) -> int:
        """Backward holds three tiles of scores in float32 or wider, and the slopes of soft-capped ones.

        The gradients of keys and values, which are sums over all tiles, are not counted.
        """
        tiles_of_scores = 4 if request.has_softcap else 3
        return size.num_heads * size.rows * size.keys * max(4, size.itemsize) * tiles_of_scores

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tiles: Sequence[Tile],
        settings: AttentionSettings,
    ) -> torch.Tensor:
        """Attention [T, N, H], differentiable in query, keys and values; see `Backend.attend`.

        Peak extra memory: `scratch_bytes` a tile, and key and value gradients in float32.
        """
        return _TiledAttention.apply(query, keys, values, tiles, settings)


DIFFERENTIABLE_ON_CPU = DifferentiableBackend(name="differentiable", cut=CPU_CUT, on_cuda=False)
DIFFERENTIABLE_ON_CUDA = DifferentiableBackend(name="differentiable-cuda", cut=CUDA_CUT, on_cuda=True)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tiles: Sequence[Tile],
        settings: AttentionSettings,
    ) -> torch.Tensor:
        folded = _fold(query, key.shape[0])
        output = torch.empty_like(folded)
        lse = folded.new_empty(folded.shape[:3], dtype=_wide(query.dtype))
        for tile in tiles:
            rows = slice(*tile.rows)
            scores, _ = _score(folded[:, :, rows].flatten(1, 2), key, tile, settings)
            lse_KR = scores.to(lse.dtype).logsumexp(dim=-1)
            weights = (scores - lse_KR[..., None]).exp_().to(value.dtype)
            lse[:, :, rows] = lse_KR.unflatten(1, (folded.shape[1], tile.num_rows))
            attended = torch.bmm(weights, gather_keys(value, tile))
            output[:, :, rows] = attended.unflatten(1, (folded.shape[1], tile.num_rows))
        ctx.save_for_backward(folded, key, value, output, lse)
        ctx.tiles, ctx.settings = tiles, settings
        return output.flatten(0, 1).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        folded, key, value, output, lse = ctx.saved_tensors
        grad_KGTH = _fold(gradients[0].transpose(0, 1), key.shape[0])
        delta = (grad_KGTH * output).sum(dim=-1, dtype=lse.dtype)
        grad_query = torch.empty_like(folded)
        grad_key = torch.zeros_like(key, dtype=lse.dtype)
        grad_value = torch.zeros_like(value, dtype=lse.dtype)
        for tile in ctx.tiles:
            rows = slice(*tile.rows)
            query_KRH = folded[:, :, rows].flatten(1, 2)
            grad_KRH = grad_KGTH[:, :, rows].flatten(1, 2)
            scores, slope = _score(query_KRH, key, tile, ctx.settings)
            weights = (scores - lse[:, :, rows].flatten(1)[..., None]).exp_()
            _add_to_keys(grad_value, tile, weights.to(grad_KRH.dtype).transpose(1, 2) @ grad_KRH)
            d_scores = torch.bmm(grad_KRH, gather_keys(value, tile).transpose(1, 2)).to(lse.dtype)
            d_scores = d_scores.sub_(delta[:, :, rows].flatten(1)[..., None]).mul_(weights)
            if slope is not None:
                d_scores *= slope
            d_scores = d_scores.mul_(ctx.settings.scaling).to(query_KRH.dtype)
            _add_to_keys(grad_key, tile, d_scores.transpose(1, 2) @ query_KRH)
            d_query = torch.bmm(d_scores, gather_keys(key, tile))
            grad_query[:, :, rows] = d_query.unflatten(1, (folded.shape[1], tile.num_rows))
        return (
            grad_query.flatten(0, 1),
            grad_key.to(key.dtype),
            grad_value.to(value.dtype),
            None,
            None,
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _fold(states: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """[N, T, H] as [K, G, T, H]: the query heads of a kv head side by side."""
    return states.unflatten(0, (num_kv_heads, -1))


def _score(
    query_KRH: torch.Tensor, key: torch.Tensor, tile: Tile, settings: AttentionSettings
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Masked scores [K, R, J] in float32 or wider, and their slope under soft-capping."""
    scores = torch.bmm(query_KRH, gather_keys(key, tile).transpose(1, 2)).to(_wide(key.dtype))
    scores.mul_(settings.scaling)
    slope = None
    if settings.softcap is not None:
        tanh = (scores / settings.softcap).tanh_()
        slope, scores = 1 - tanh**2, tanh * settings.softcap
    if tile.num_masked:
        hidden = ~tile.visible_mask(scores.device)
        masked = scores.unflatten(1, (-1, tile.num_rows))[..., tile.num_unmasked :]
        masked.masked_fill_(hidden, float("-inf"))
    return scores, slope


def _add_to_keys(total: torch.Tensor, tile: Tile, gradient_KJH: torch.Tensor) -> None:
    """Adds gradients of a tile's keys where those keys are in the key space."""
    first = 0
    for start, end in tile.key_ranges:
        total[:, start:end] += gradient_KJH[:, first : first + end - start]
        first += end - start
