"""(code - zero point) * scale for groups of input channels, tile by tile. Knows no packing.

Legend: N output channels, K input channels, G groups, R rows and C columns of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from strata.kernels.dequant.blocks import Scratch, block_elements, tile_of, tiles

TILE_ROWS = 64
"""Rows of a tile: a multiple of the codes of a word, and wide enough to read whole cache lines of [., N]."""

COLUMN_STEP = 32
"""A tile's columns start at a multiple of this, hence at a word whatever the bits."""

ReadCodes = Callable[[slice, slice], torch.Tensor]
"""(rows, columns) -> integer codes [R, C]; may return scratch memory."""

ReadGroups = Callable[[slice], tuple[torch.Tensor, torch.Tensor]]
"""rows -> zero points and scales, both float32 [R, G]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """Which columns share a zero point and a scale.

    Attributes:
        size: columns a group.
        of_column: int32 [K], the group of every column, or None where groups are runs of columns that tiles
            can be aligned to.
    """

    size: int
    of_column: torch.Tensor | None


def group_columns(
    g_idx: torch.Tensor | None, group_size: int, num_groups: int, out: torch.Tensor
) -> Grouping:
    """How the columns of `out` are grouped.

    Args:
        g_idx: int [K], on the host, or a device will be waited for; or None for k // group_size.
        group_size: columns a group.
        num_groups: G.
        out: the output [N, K].

    Returns:
        The grouping, on the output's device.

    Raises:
        ValueError: a group that does not exist, or a g_idx of another shape.
    """
    num_columns = out.shape[1]
    if group_size <= 0:
        raise ValueError(f"group_size is {group_size}, expected a positive number")
    runs = torch.arange(num_columns, dtype=torch.int32) // group_size
    columns_group = runs if g_idx is None else _checked(g_idx, num_columns)
    if num_columns and int(columns_group.max()) >= num_groups:
        raise ValueError(
            f"column {int(columns_group.argmax())} is in group {int(columns_group.max())}, but scales have"
            f" {num_groups} groups; group_size is {group_size}"
        )
    alignable = group_size >= num_columns or (group_size % COLUMN_STEP == 0 and num_columns % group_size == 0)
    if alignable and torch.equal(columns_group, runs):
        return Grouping(size=group_size, of_column=None)
    return Grouping(size=group_size, of_column=columns_group.to(out.device, non_blocking=True))


def _checked(g_idx: torch.Tensor, num_columns: int) -> torch.Tensor:
    """The group of every column, int32 on the host."""
    found = g_idx.to("cpu", torch.int32)
    if tuple(found.shape) != (num_columns,) or (num_columns and int(found.min()) < 0):
        raise ValueError(f"g_idx has shape {list(g_idx.shape)}, expected [{num_columns}], nowhere negative")
    return found


def decode_groups(
    read_codes: ReadCodes,
    read_groups: ReadGroups,
    grouping: Grouping,
    out: torch.Tensor,
    scratch: Scratch,
) -> torch.Tensor:
    """Fills `out` [N, K] with (code - zero point) * scale, computed in float32 and rounded once.

    Args:
        read_codes: gives a tile's codes.
        read_groups: gives the zero points and scales of a tile's rows.
        grouping: of the columns.
        out: overwritten.
        scratch: buffers on the output's device.

    Returns:
        `out`.
    """
    num_rows, num_columns = out.shape
    width = _tile_columns(grouping, out)
    for rows, column_ranges in tiles(num_rows, num_columns, TILE_ROWS, width):
        zeros_RG, scales_RG = read_groups(rows)
        zeros_RG1, scales_RG1 = zeros_RG[:, :, None], scales_RG[:, :, None]
        for columns in column_ranges:
            target = tile_of(out, rows, columns)
            work = scratch.float32(target)
            work.copy_(read_codes(rows, columns))
            if grouping.of_column is None:
                first = columns.start // grouping.size
                num_groups = -(-columns.stop // grouping.size) - first
                work_RGC = work.unflatten(1, (num_groups, -1))
                work_RGC.sub_(zeros_RG1.narrow(1, first, num_groups))
                work_RGC.mul_(scales_RG1.narrow(1, first, num_groups))
            else:
                of_column = grouping.of_column[columns]
                work.sub_(zeros_RG.index_select(1, of_column)).mul_(scales_RG.index_select(1, of_column))
            if work is not target:
                target.copy_(work)
    return out


def _tile_columns(grouping: Grouping, out: torch.Tensor) -> int:
    """Columns of a tile, which where groups are runs holds whole groups or lies in one."""
    limit, size = block_elements(out.device) // TILE_ROWS, grouping.size
    if grouping.of_column is not None or size >= out.shape[1]:
        return limit
    return limit // size * size if size <= limit else math.gcd(size, limit)
