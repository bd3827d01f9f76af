"""Decodes the storage types of GGUF files, block after block. Knows no files.

Legend: N rows, K columns of a weight, B blocks. A row is a whole number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from strata.kernels.dequant.blocks import Scratch, block_elements, check_dtype, check_out, check_shape
from strata.kernels.dequant.gguf import small_blocks, super_blocks
from strata.kernels.triton_support.operators import define_filler, has_kernels

DecodeBlocks = Callable[[torch.Tensor, torch.Tensor], None]
"""(blocks [B, bytes] uint8, out [B, weights] float32): writes the values."""


@dataclass(frozen=True, kw_only=True)
class BlockType:
    """How a storage type lays out weights.

    Attributes:
        weights: in a block.
        num_bytes: of a block.
        decode: writes blocks' values in float32.
    """

    weights: int
    num_bytes: int
    decode: DecodeBlocks

    def row_bytes(self, num_columns: int) -> int:
        """Bytes of a row, whose columns must fill whole blocks."""
        return num_columns // self.weights * self.num_bytes


def _float_type(dtype: torch.dtype) -> BlockType:
    def decode(blocks: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(blocks.view(dtype))

    return BlockType(weights=1, num_bytes=dtype.itemsize, decode=decode)


BLOCK_TYPES: dict[str, BlockType] = {
    "F32": _float_type(torch.float32),
    "F16": _float_type(torch.float16),
    "BF16": _float_type(torch.bfloat16),
    "Q4_0": BlockType(weights=32, num_bytes=18, decode=small_blocks.decode_q4_0),
    "Q4_1": BlockType(weights=32, num_bytes=20, decode=small_blocks.decode_q4_1),
    "Q5_0": BlockType(weights=32, num_bytes=22, decode=small_blocks.decode_q5_0),
    "Q5_1": BlockType(weights=32, num_bytes=24, decode=small_blocks.decode_q5_1),
    "Q8_0": BlockType(weights=32, num_bytes=34, decode=small_blocks.decode_q8_0),
    "IQ4_NL": BlockType(weights=32, num_bytes=18, decode=small_blocks.decode_iq4_nl),
    "Q2_K": BlockType(weights=256, num_bytes=84, decode=super_blocks.decode_q2_k),
    "Q3_K": BlockType(weights=256, num_bytes=110, decode=super_blocks.decode_q3_k),
    "Q4_K": BlockType(weights=256, num_bytes=144, decode=super_blocks.decode_q4_k),
    "Q5_K": BlockType(weights=256, num_bytes=176, decode=super_blocks.decode_q5_k),
    "Q6_K": BlockType(weights=256, num_bytes=210, decode=super_blocks.decode_q6_k),
    "IQ4_XS": BlockType(weights=256, num_bytes=136, decode=super_blocks.decode_iq4_xs),
}
"""By ggml's name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GgufParts:
    """A stored weight.

    Attributes:
        packed: uint8 [N, bytes of a row].
        type_name: a key of BLOCK_TYPES.
        row_order: int64 [N], the stored row of every row of the weight; None for the same order.
        offset: added to every value in float32, as Gemma's norms need it.
    """

    packed: torch.Tensor
    type_name: str
    row_order: torch.Tensor | None = None
    offset: float = 0.0


def dequantize_gguf(stored: GgufParts, out: torch.Tensor) -> torch.Tensor:
    """Fills `out` with the values, computed in float32 as ggml does and rounded once.

    Args:
        stored: the weight.
        out: [N, K] float32, bfloat16 or float16, contiguous; overwritten.

    Returns:
        `out`. Extra memory: a few times one block of the cache's size.

    Raises:
        ValueError: a shape or dtype other than these.
    """
    kind, packed = BLOCK_TYPES[stored.type_name], stored.packed
    check_dtype("packed", packed, torch.uint8)
    check_out(out)
    check_shape("packed", packed, (out.shape[0], kind.row_bytes(out.shape[1])))
    order = None if stored.row_order is None else stored.row_order.to(out.device)
    one_launch = stored.type_name in ONE_LAUNCH and has_kernels(out.device)
    decode = decode_gguf if one_launch else _decode_rows
    decode(packed, order, stored.type_name, stored.offset, out)
    return out


def _decode_rows(
    packed: torch.Tensor, order: torch.Tensor | None, type_name: str, offset: float, out: torch.Tensor
) -> None:
    kind, scratch = BLOCK_TYPES[type_name], Scratch(out.device)
    if order is None:
        _decode_run(packed, kind, offset, out, scratch)
        return
    num_rows = max(1, block_elements(out.device) // max(1, out.shape[1]))
    for rows, target in zip(order.split(num_rows), out.split(num_rows), strict=True):
        _decode_run(packed.index_select(0, rows), kind, offset, target, scratch)


def _gguf_on_card(
    packed: torch.Tensor, order: torch.Tensor | None, type_name: str, offset: float, out: torch.Tensor
) -> None:
    from strata.kernels.dequant.gguf.triton_kernels import launch_gguf

    kind = BLOCK_TYPES[type_name]
    launch_gguf(packed, order, type_name, (kind.weights, kind.num_bytes), offset, out)


ONE_LAUNCH = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"})
"""Storage types that a Triton kernel decodes."""

decode_gguf = define_filler(
    "decode_gguf",
    "Tensor packed, Tensor? row_order, str type_name, float offset",
    _decode_rows,
    _gguf_on_card,
)


def _decode_run(
    packed: torch.Tensor, kind: BlockType, offset: float, out: torch.Tensor, scratch: Scratch
) -> None:
    """Rows that lie one after another."""
    num_blocks = max(1, block_elements(out.device) // kind.weights)
    runs = packed.reshape(-1, kind.num_bytes).split(num_blocks)
    for blocks, target in zip(runs, out.view(-1, kind.weights).split(num_blocks), strict=True):
        work = scratch.float32(target)
        kind.decode(blocks, work)
        if offset:
            work.add_(offset)
        if work is not target:
            target.copy_(work)
