"""What the last layer leaves for heads, on the host. Knows nothing of layers.

Shape suffixes: S scored rows of a job, s of a micro-batch, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Readouts:
    """Where workers leave what is read out: `rows` [S, D] a member, for `scored` [S] stream indexes."""

    scored: np.ndarray
    rows: Mapping[str, torch.Tensor]

    def put(self, member: str, streams: np.ndarray, readouts: torch.Tensor) -> None:
        """Stores readouts [s, D] of stream indexes [s], on the host."""
        places = torch.from_numpy(np.searchsorted(self.scored, streams))
        rows = self.rows[member]
        rows[places] = readouts.to(rows.dtype).cpu()


Tap = Callable[[int, str, np.ndarray, torch.Tensor], None]
"""Told of every layer, member, stream indexes [s] and what a head would read there [s, D], on the device."""


class ReadoutsNotFiniteError(FloatingPointError):
    """Readouts that hold NaN or inf, and the stream indexes [s] that they belong to."""

    def __init__(self, streams: np.ndarray) -> None:
        super().__init__("the last layer's readouts are not finite: weights or activations hold NaN or inf")
        self.streams = streams
