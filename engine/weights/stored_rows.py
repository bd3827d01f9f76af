"""A weight that is read row by row: as it lies, or decoded from blocks that no two rows share.

Embedding and vocabulary projection are larger than anything else beside the layers, and a job needs some of
their rows only. Knows nothing of which weights these are.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from strata.engine.types import InputError
from strata.engine.weights.formats.stored_weight import PlainWeight, StoredWeight
from strata.engine.weights.safetensors_file import StoredTensor
from strata.engine.weights.tensor_reader import TensorReader

RANGES_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredRows:
    """The rows of a weight; a vector's rows are its numbers.

    Attributes:
        weight: what is stored.
        tensor: its part that holds the rows.
    """

    weight: StoredWeight
    tensor: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the decoded weight."""
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        """What rows are read as: the stored floating-point dtype, or float32 for those that are decoded.

        Raises:
            InputError: a plain tensor of another kind of dtype.
        """
        return self.weight.dtype if isinstance(self.weight, PlainWeight) else torch.float32

    @property
    def role(self) -> str:
        """What the weight calls the part that holds the rows."""
        return next(role for role, part in self.weight.parts.items() if part is self.tensor)

    @property
    def num_bytes(self) -> int:
        """On disk."""
        return self.tensor.num_bytes

    @property
    def row_bytes(self) -> int:
        """Of a row on disk."""
        return self.tensor.num_bytes // self.shape[0]

    def read(self, reader: TensorReader) -> torch.Tensor:
        """All of them, [shape]."""
        return self._values(reader.read(self.tensor))

    def read_range(self, reader: TensorReader, first: int, last: int) -> torch.Tensor:
        """Rows [first, last)."""
        return self._values(reader.read_rows(self.tensor, first, last))

    def read_ranges(self, reader: TensorReader, ranges: Iterable[tuple[int, int]]) -> torch.Tensor:
        """Rows of half-open ranges, one range after the other, in memory of their own.

        Several ranges are asked for at a time: a disk, and a mount even more, takes long to answer and can
        look for many at once.
        """
        ranges = list(ranges)
        num_rows = sum(last - first for first, last in ranges)
        raw, filled = torch.empty(num_rows * self.row_bytes, dtype=torch.uint8), 0
        asked: list[tuple[torch.Tensor, int]] = []
        for first, last in ranges:
            size = (last - first) * self.row_bytes
            asked.append((raw[filled : filled + size], first * self.row_bytes))
            filled += size
        with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
            for _ in pool.map(lambda one: reader.read_into(self.tensor, *one), asked):
                pass
        return self._values(raw.view(self.tensor.torch_dtype).view(num_rows, *self.tensor.shape[1:]))

    def _values(self, raw: torch.Tensor) -> torch.Tensor:
        if isinstance(self.weight, PlainWeight):
            return raw
        out = torch.empty(len(raw), *self.shape[1:], dtype=self.dtype)
        return self.weight.decode({self.role: raw}, out)


def rows_of(weight: StoredWeight) -> StoredRows:
    """A weight's rows.

    Raises:
        InputError: it is stored quantised over several rows, or in several parts.
    """
    if weight.rows is None:
        raise InputError(
            f"{weight.file}: {weight.name} is stored as {weight.format_name}; strata expects embedding, "
            "final norm and heads as plain floating-point tensors"
        )
    return StoredRows(weight=weight, tensor=weight.rows)
