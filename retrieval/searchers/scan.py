"""One device's scan of vectors for the exact best rows of every query. Knows no shard files, no other device.

A tile of rows is scored by one fast GEMM (float32, or bfloat16 where the CPU multiplies it natively). Its
rounding error has a proven bound, so a row whose fast score plus that bound cannot beat a query's k-th best
is dropped; the few others are scored again in float64. So the result is that of float64 arithmetic and
depends neither on tiles, shards and devices nor on the GEMM's dtype.

Legend: Q queries, N rows of a shard, B rows of a tile, D dimensions, k top_k, n entries that survive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from strata.retrieval.index.vector_shard import VectorShard, exact_scores
from strata.retrieval.searchers.running_top_k import RunningTopK

FastDtype = Literal["auto", "float32", "bfloat16"]

BLOCK = 64
"""Neighbouring scores that are dropped together when their maximum is too low."""

TILE_ROWS = 8192
MAX_TILE_SCORES = 1 << 22
MAX_EXACT_VALUES = 1 << 20
"""Stored values that are multiplied in float64 at a time (some 24 MiB in all)."""

MAX_QUERY_VALUE = 1e25
SMALLEST = 2.0**-126
"""What a factor or product below it may be flushed to zero from."""

CROWDED = 1 / 64
"""With a larger share of survivors than this, a bfloat16 tile is scored again in float32."""


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """How a device scans; has no influence on the result.

    `fast_dtype` is what the GEMM runs in; auto is bfloat16 where the CPU has instructions for it.
    `tile_rows` are scored at a time.
    """

    fast_dtype: FastDtype = "auto"
    tile_rows: int = TILE_ROWS


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceScan:
    """One device's scan: the queries there, and the best rows so far. Tiles come in ascending row order."""

    queries: torch.Tensor
    queries64: np.ndarray
    norms: np.ndarray
    fast_dtype: torch.dtype
    tile_rows: int
    best: RunningTopK

    @classmethod
    def start(
        cls, queries_QD: np.ndarray, top_k: int, device: torch.device, settings: ScanSettings
    ) -> DeviceScan:
        """A scan that has seen nothing."""
        queries64_QD = queries_QD.astype(np.float64)
        return cls(
            queries=torch.from_numpy(queries_QD).to(device),
            queries64=queries64_QD,
            norms=np.linalg.norm(queries64_QD, axis=1),
            fast_dtype=pick_fast_dtype(settings.fast_dtype, device),
            tile_rows=settings.tile_rows,
            best=RunningTopK(len(queries_QD), top_k),
        )

    def take_shard(self, shard: VectorShard) -> None:
        """Takes in every row of a shard.

        Raises:
            ValueError: it has vectors of another dimension.
            FloatingPointError: a vector is not finite.
        """
        if shard.dim != self.queries.shape[1]:
            raise ValueError(
                f"the shard of row {shard.first_row} has {shard.dim} dimensions, the queries "
                f"{self.queries.shape[1]}; expected the same"
            )
        if not len(self.queries):
            return
        size = max(1, min(self.tile_rows, MAX_TILE_SCORES // len(self.queries)))
        for start in range(0, shard.num_rows, size):
            stop = min(start + size, shard.num_rows)
            tile = ShardTile(
                first_row=shard.first_row + start,
                codes=shard.tile(start, stop),
                scales=shard.tile_scales(start, stop),
                max_norm=shard.max_norm,
            )
            self.take_tile(tile)

    def take_tile(self, tile: ShardTile) -> None:
        """Scores a tile, and adds to the best whatever may be among them."""
        query, column = self.survivors(tile, self.fast_dtype)
        is_crowded = len(query) > CROWDED * len(tile.codes) * len(self.norms)
        if is_crowded and self.fast_dtype == torch.bfloat16:
            query, column = self.survivors(tile, torch.float32)
        step = max(1, MAX_EXACT_VALUES // max(1, tile.codes.shape[1]))
        for start in range(0, len(query), step):
            part_query, part_column = query[start : start + step], column[start : start + step]
            scales = None if tile.scales is None else tile.scales[part_column]
            scores = exact_scores(self.queries64[part_query], tile.codes[part_column], scales)
            if not np.isfinite(scores).all():
                row = tile.first_row + int(part_column[~np.isfinite(scores)][0])
                raise FloatingPointError(f"the stored vector of row {row} is not finite")
            self.best.add(part_query, tile.first_row + part_column, scores)

    def survivors(self, tile: ShardTile, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Queries [n] and columns [n] of the entries that may be among a query's best k."""
        device = self.queries.device
        rows_BD = torch.from_numpy(tile.codes).to(device).to(dtype)
        scores_QB = self.queries.to(dtype) @ rows_BD.T
        if tile.scales is not None:
            scores_QB = scores_QB.float() * torch.from_numpy(tile.scales).to(device)
        errors_Q = self.errors(tile.norm_bound(rows_BD), relative_error(dtype, rows_BD))
        floors_Q = self.best.kth_scores() - errors_Q
        top_k = self.best.rows.shape[1]
        if np.isneginf(floors_Q).any() and top_k <= len(rows_BD):
            kth_Q = scores_QB.float().topk(top_k, dim=1).values[:, -1].cpu().numpy().astype(np.float64)
            floors_Q = np.maximum(floors_Q, np.nextafter(kth_Q - 2 * errors_Q, -np.inf))
        return entries_above(scores_QB, torch.from_numpy(round_down(floors_Q)).to(device))

    def errors(self, norm_bound: float, relative: float) -> np.ndarray:
        """[Q] float64, how far a fast score may be off; a query of zeros has none."""
        underflow = self.queries.shape[1] * SMALLEST * max(1.0, norm_bound)
        return np.where(self.norms > 0, self.norms * norm_bound * relative + underflow, 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTile:
    """Rows of a shard that are scored together; see `VectorShard`."""

    first_row: int
    codes: np.ndarray
    scales: np.ndarray | None
    max_norm: float | None

    def norm_bound(self, rows_BD: torch.Tensor) -> float:
        """No less than the norm of any row; `rows_BD` are the codes on the device, in the GEMM's dtype."""
        if self.max_norm is not None:
            return self.max_norm
        norms_B = torch.linalg.vector_norm(rows_BD, dim=1, dtype=torch.float32)
        if self.scales is not None:
            norms_B = norms_B * torch.from_numpy(self.scales).to(norms_B.device).abs()
        # Rounding to bfloat16 may have shortened a row by one part in 256.
        return float(norms_B.max()) * (1 + 2**-7)


def pick_fast_dtype(dtype: FastDtype, device: torch.device) -> torch.dtype:
    """The GEMM's dtype."""
    if dtype == "auto":
        is_native = device.type == "cpu" and _multiplies_bfloat16()
        return torch.bfloat16 if is_native else torch.float32
    return getattr(torch, dtype)


def _multiplies_bfloat16() -> bool:
    """Whether the CPU has dot products of bfloat16; no, where torch is too old to tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def relative_error(dtype: torch.dtype, rows_BD: torch.Tensor) -> float:
    """Bound of |fast score - exact score| / (|query| |row|).

    With unit roundoff u, rounding both operands errs by at most (2 u + u^2) sum |q_i x_i| <= ... |q| |x|, the
    sum of D products in float32 by D 2^-24 of it, rounding the result by u (Cauchy-Schwarz; Higham, Accuracy
    and Stability of Numerical Algorithms, section 3.1). bfloat16: u = 2^-8. float32 has the allowance of
    TensorFloat-32 (u = 2^-10, truncated) on CUDA and wherever torch may use less than float32 inside a GEMM.
    """
    accumulation = (rows_BD.shape[1] + 8) * 2.0**-23
    if dtype == torch.bfloat16 or torch.get_float32_matmul_precision() == "medium":
        return 3.05 * 2.0**-8 + accumulation
    is_plain = rows_BD.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return accumulation if is_plain else 2.1 * 2.0**-10 + accumulation


def round_down(values: np.ndarray) -> np.ndarray:
    """The largest float32 no greater than each float64."""
    rounded = values.astype(np.float32)
    return np.where(rounded > values, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def entries_above(scores_QB: torch.Tensor, floors_Q: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where a score is above its query's floor, or NaN: queries [n] and columns [n], int64.

    Blocks of neighbours are dropped by their maximum first: most tiles hold next to nothing.
    """
    num_blocked = scores_QB.shape[1] // BLOCK * BLOCK
    blocks = scores_QB[:, :num_blocked].unflatten(1, (num_blocked // BLOCK, BLOCK))
    # Not "above" but "not at most": NaN has to go on, to be found.
    query, block = torch.nonzero(~(blocks.amax(dim=2) <= floors_Q[:, None]), as_tuple=True)
    hit, place = torch.nonzero(~(blocks[query, block] <= floors_Q[query, None]), as_tuple=True)
    tail_query, tail_column = torch.nonzero(~(scores_QB[:, num_blocked:] <= floors_Q[:, None]), as_tuple=True)
    queries = torch.cat((query[hit], tail_query))
    columns = torch.cat((block[hit] * BLOCK + place, tail_column + num_blocked))
    return queries.cpu().numpy(), columns.cpu().numpy()
