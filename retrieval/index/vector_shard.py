"""A shard of vectors as it is stored: float16, int8 with a scale a row, or one sign bit a dimension.

Knows how to make codes and to read tiles of them, not where they are kept nor how they are searched.
Legend: N rows of a shard, B rows of a tile, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

INT8_LEVELS = 127

VectorKind = Literal["float16", "int8", "binary"]
"""How vectors are stored; int8 has a scale a row."""

DTYPES: Mapping[VectorKind, type[np.generic]] = {"float16": np.float16, "int8": np.int8, "binary": np.uint8}


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorShard:
    """Rows `first_row` .. `first_row + N` of an index's vectors.

    `codes` is [N, D] of float16, float32 or int8, or [N, ceil(D / 8)] uint8: sign bits that stand for +1 and
    -1. `scales` [N] float32 multiply int8 rows; None is 1. `max_norm` is no less than the Euclidean norm of
    any row, scale included; None: looked up in every tile.
    """

    first_row: int
    codes: np.ndarray
    dim: int
    scales: np.ndarray | None = None
    max_norm: float | None = None

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.codes)

    def tile(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` .. `stop` of the shard, [B, D], without scales; bits become int8 of +1 and -1."""
        codes = self.codes[start:stop]
        if codes.dtype == np.uint8:
            return unpack_signs(codes, self.dim)
        return np.require(codes, requirements=["C", "W"])

    def tile_scales(self, start: int, stop: int) -> np.ndarray | None:
        """Scales of these rows, [B] float32, or None."""
        return None if self.scales is None else np.asarray(self.scales[start:stop])


def exact_scores(queries_ND: np.ndarray, codes_ND: np.ndarray, scales_N: np.ndarray | None) -> np.ndarray:
    """Inner products of paired rows in float64, [N].

    A product of a float32 and a stored value is exact in float64, and every row is summed in one order: equal
    rows get equal scores wherever they stand.

    Args:
        queries_ND: [N, D] float64 holding float32 values.
        codes_ND: [N, D] float16, float32 or int8.
        scales_N: [N] float32 or None.
    """
    scores_N = (queries_ND * codes_ND.astype(np.float64)).sum(axis=1)
    return scores_N if scales_N is None else scores_N * scales_N


def num_columns(kind: VectorKind, dim: int) -> int:
    """Stored values of a vector of that many dimensions: eight sign bits are one."""
    return -(-dim // 8) if kind == "binary" else dim


def store_vectors(vectors_ND: np.ndarray, kind: VectorKind) -> tuple[np.ndarray, np.ndarray | None]:
    """Rounds vectors to the values that are stored.

    Args:
        vectors_ND: [N, D] float16 or float32, finite in float16.
        kind: what to make of them.

    Returns:
        Codes [N, `num_columns`] of the kind's dtype, and for int8 scales [N] float32.
    """
    if kind == "int8":
        return quantise_int8(vectors_ND)
    return (pack_signs(vectors_ND) if kind == "binary" else vectors_ND.astype(np.float16)), None


def quantise_int8(vectors_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds each row to 255 levels around zero.

    Args:
        vectors_ND: [N, D] float16 or float32, finite.

    Returns:
        Codes [N, D] int8 and scales [N] float32 with vectors ~ codes * scales; a row of zeros has scale 0.
    """
    vectors_ND = vectors_ND.astype(np.float32)
    scales_N = np.abs(vectors_ND).max(axis=1, initial=0.0) / np.float32(INT8_LEVELS)
    divisors_N = np.where(scales_N > 0, scales_N, np.float32(1))
    codes_ND = np.clip(np.rint(vectors_ND / divisors_N[:, None]), -INT8_LEVELS, INT8_LEVELS)
    return codes_ND.astype(np.int8), scales_N.astype(np.float32)


def pack_signs(vectors_ND: np.ndarray) -> np.ndarray:
    """One bit a dimension, 1 where the value is above zero: [N, ceil(D / 8)] uint8."""
    return np.packbits(vectors_ND > 0, axis=1)


def unpack_signs(bits: np.ndarray, dim: int) -> np.ndarray:
    """The +1 and -1 that packed bits stand for, [N, D] int8."""
    return np.unpackbits(bits, axis=1, count=dim).astype(np.int8) * np.int8(2) - np.int8(1)
