"""What a stored weight is made of, format by format: the tensors and the numbers that decode them.

Knows no file and decodes nothing; shapes are checked where a weight is decoded.
Legend: N output channels, K input channels, G groups, P = 32 / bits codes of a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class FourBitParts:
    """A bitsandbytes weight [N, K], flattened: two codes a byte, a scale every `blocksize` weights.

    Attributes:
        packed: uint8 [ceil(N * K / 2)], or that as [., 1] or [1, .]; view other storage dtypes as uint8.
        absmax: float32 [ceil(N * K / blocksize)].
        quant_map: float32 [16], the value of each code.
        blocksize: weights a block, a positive even number.
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    quant_map: torch.Tensor
    blocksize: int


@dataclass(frozen=True, kw_only=True, eq=False)
class GptqParts:
    """A GPTQ weight, stored transposed.

    Attributes:
        qweight: int32 [K / P, N].
        qzeros: int32 [G, N / P].
        scales: [G, N], any float dtype.
        group_size: input channels a group; -1 for K.
        zero_offset: 1 for checkpoint_format "gptq" (v1), 0 for "gptq_v2".
        g_idx: int [K], the group of every input channel (act-order: in any order); None for k // group_size.
        bits: 2, 4 or 8.
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    group_size: int
    zero_offset: int
    g_idx: torch.Tensor | None = None
    bits: int = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedParts:
    """A compressed-tensors pack-quantized weight.

    Attributes:
        packed: int32 [N, ceil(K / P)].
        scale: [N, G], any float dtype; G = 1 for a scale a channel.
        zero_point: int32 [ceil(N / P), G], or None where quantisation is symmetric.
        g_idx: int [K], the group of every input channel, or None for k // group_size. A `weight_g_idx` that
            holds -1 is unset: pass None.
        bits: 4 or 8.
        group_size: input channels a group; None for K / G.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    g_idx: torch.Tensor | None = None
    bits: int = 4
    group_size: int | None = None
