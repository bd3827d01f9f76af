"""GGUF's commonest storage types as one Triton kernel, one launch a matrix. Imports triton.

Operations run in ggml's order in float32 without fused multiply-adds, as in small_blocks.py and
super_blocks.py, where the layouts are told. Legend: N rows, K columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS = 1024


@triton.jit
def _byte(block, at):
    return tl.load(block + at).to(tl.int32)


@triton.jit
def _half(block, at):
    """The float16 at a byte, which need not be aligned."""
    bits = _byte(block, at) | (_byte(block, at + 1) << 8)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _signed(byte):
    return tl.where(byte > 127, byte - 256, byte)


@triton.jit
def _small_value(block, j, TYPE: tl.constexpr):
    """Weight j of blocks of 32."""
    d = _half(block, 0)
    if TYPE == "Q8_0":
        return _signed(_byte(block, 2 + j)).to(tl.float32) * d
    HAS_MINIMUM: tl.constexpr = TYPE == "Q4_1" or TYPE == "Q5_1"
    HAS_FIFTH: tl.constexpr = TYPE == "Q5_0" or TYPE == "Q5_1"
    HIGH: tl.constexpr = 4 if HAS_MINIMUM else 2
    LOW: tl.constexpr = HIGH + 4 if HAS_FIFTH else HIGH
    code = (_byte(block, LOW + j % 16) >> (j // 16 * 4)) & 15
    if HAS_FIFTH:
        code |= ((_byte(block, HIGH + j // 8) >> (j % 8)) & 1) << 4
    if HAS_MINIMUM:
        return code.to(tl.float32) * d + _half(block, 2)
    MIDDLE: tl.constexpr = 16 if HAS_FIFTH else 8
    return (code - MIDDLE).to(tl.float32) * d


@triton.jit
def _super_value(block, j, TYPE: tl.constexpr):
    """Weight j of blocks of 256."""
    if TYPE == "Q6_K":
        half = j // 128
        low = (_byte(block, half * 64 + j % 64) >> (j % 128 // 64 * 4)) & 15
        high = (_byte(block, 128 + half * 32 + j % 32) >> (j % 128 // 32 * 2)) & 3
        scale = _half(block, 208) * _signed(_byte(block, 192 + j // 16)).to(tl.float32)
        return ((low | (high << 4)) - 32).to(tl.float32) * scale
    group = j // 32
    CODES: tl.constexpr = 16 if TYPE == "Q4_K" else 48
    code = (_byte(block, CODES + j // 64 * 32 + j % 32) >> (group % 2 * 4)) & 15
    if TYPE == "Q5_K":
        code |= ((_byte(block, 16 + j % 32) >> group) & 1) << 4
    # Scales and minima of groups 0 to 3 are six bits of a byte; of those after, their high bits lie there.
    first = _byte(block, 4 + group % 4)
    second = _byte(block, 8 + group % 4)
    rest = _byte(block, 12 + group % 4)
    is_early = group < 4
    scale = tl.where(is_early, first & 63, (rest & 15) | (first >> 6 << 4))
    minimum = tl.where(is_early, second & 63, (rest >> 4) | (second >> 6 << 4))
    value = code.to(tl.float32) * (_half(block, 0) * scale.to(tl.float32))
    return value - _half(block, 2) * minimum.to(tl.float32)


@triton.jit
def gguf_kernel(
    packed,
    row_order,
    out,
    num_columns,
    row_bytes,
    offset,
    TYPE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    NUM_BYTES: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out [N, K], a row and COLUMNS columns a program; columns past the end decode the last one again."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < num_columns
    kept = tl.minimum(column, num_columns - 1)
    stored_row = tl.load(row_order + row) if HAS_ORDER else row
    block = packed + stored_row * row_bytes + (kept // WEIGHTS) * NUM_BYTES
    if WEIGHTS == 32:
        value = _small_value(block, kept % WEIGHTS, TYPE)
    else:
        value = _super_value(block, kept % WEIGHTS, TYPE)
    if HAS_OFFSET:
        value += offset
    tl.store(out + row * num_columns + column, value.to(out.dtype.element_ty), mask=mask)


def launch_gguf(
    packed: torch.Tensor,
    row_order: torch.Tensor | None,
    type_name: str,
    block: tuple[int, int],
    offset: float,
    out: torch.Tensor,
) -> None:
    """Fills out [N, K] with weights of a storage type whose blocks have so many weights and bytes."""
    num_rows, num_columns = out.shape
    if out.numel():
        with torch.cuda.device_of(out):
            gguf_kernel[(num_rows, triton.cdiv(num_columns, COLUMNS))](
                packed,
                packed if row_order is None else row_order,
                out,
                num_columns,
                packed.stride(0),
                offset,
                TYPE=type_name,
                WEIGHTS=block[0],
                NUM_BYTES=block[1],
                HAS_ORDER=row_order is not None,
                HAS_OFFSET=offset != 0.0,
                COLUMNS=COLUMNS,
                enable_fp_fusion=False,
            )
