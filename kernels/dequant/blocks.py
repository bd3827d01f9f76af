"""How much of a weight is decoded at a time, and the scratch memory that is reused for it.

Decoding runs beside GEMMs that keep every core busy. There an OpenMP region waits for threads that do not get
a core, which was measured to cost up to a hundred times the work itself. torch starts such a region for an
element-wise operation on more than 32,768 elements, so blocks stay at or below that size unless this thread
owns all of torch's threads. Knows nothing of formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

SERIAL_ELEMENTS = 1 << 15
"""The largest element-wise operation that torch runs in the calling thread alone."""

CACHED_ELEMENTS = 1 << 17
"""With one torch thread: a float32 block of 512 KiB stays in the second-level cache."""

CUDA_ELEMENTS = 1 << 20
"""Large enough to fill a GPU; the scratch of every format stays below 32 MiB."""

COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def block_elements(device: torch.device) -> int:
    """Weights to decode at a time on a device."""
    if device.type != "cpu":
        return CUDA_ELEMENTS
    return SERIAL_ELEMENTS if torch.get_num_threads() > 1 else CACHED_ELEMENTS


def tiles(
    num_rows: int, num_columns: int, max_rows: int, max_columns: int
) -> Iterator[tuple[slice, list[slice]]]:
    """Row ranges of at most `max_rows`, each with column ranges of at most `max_columns` that cover it."""
    columns = [
        slice(start, min(start + max_columns, num_columns)) for start in range(0, num_columns, max_columns)
    ]
    for start in range(0, num_rows, max_rows):
        yield slice(start, min(start + max_rows, num_rows)), columns


def row_tiles(out: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Tiles of `out` [N, K] of at most a block: whole rows, or parts of one row where rows are longer."""
    limit = block_elements(out.device)
    num_rows, num_columns = out.shape
    for rows, columns in tiles(num_rows, num_columns, max(1, limit // max(1, num_columns)), limit):
        for part in columns:
            yield rows, part


def tile_of(tensor: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """tensor[rows, columns] without the cost of Python indexing, which small tiles would notice."""
    part = tensor.narrow(0, rows.start, rows.stop - rows.start)
    return part.narrow(1, columns.start, columns.stop - columns.start)


def check_out(out: torch.Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Refuses an output that is no contiguous [N, K] tensor of a compute dtype.

    Args:
        out: the tensor a decoder is to fill.
        shape: the expected [N, K]; any when None.

    Raises:
        ValueError: names what is wrong and what was expected.
    """
    if out.dtype not in COMPUTE_DTYPES:
        raise ValueError(f"out is {out.dtype}, expected float32, bfloat16 or float16")
    if out.ndim != 2 or not out.is_contiguous():
        raise ValueError(
            f"out has shape {list(out.shape)}, strides {out.stride()}; expected contiguous [N, K]"
        )
    if shape is not None and tuple(out.shape) != shape:
        raise ValueError(f"out has shape {list(out.shape)}, expected {list(shape)}")


def check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Refuses a tensor of another shape: ValueError with its name, its shape and the one expected."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")


def check_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuses a tensor of another dtype: ValueError with its name, its dtype and the one expected."""
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, expected {dtype}")


class Scratch:
    """Uninitialised buffers on one device, by name, handed out again for every block."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, torch.Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The buffer `name` as a contiguous tensor; a name must always come with the same dtype."""
        view = self._views.get((name, shape))
        if view is None:
            numel = math.prod(shape)
            buffer = self._buffers.get(name)
            if buffer is None or buffer.numel() < numel:
                buffer = self._buffers[name] = torch.empty(numel, dtype=dtype, device=self._device)
            view = self._views[name, shape] = buffer[:numel].view(shape)
        return view

    def float32(self, target: torch.Tensor) -> torch.Tensor:
        """Where to compute `target` in float32: `target` itself if it is that, else a buffer of its shape."""
        if target.dtype == torch.float32:
            return target
        return self.take("float32", tuple(target.shape), torch.float32)
