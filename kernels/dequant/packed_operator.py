"""Integer weights of int32 words in one launch, for GPTQ, AWQ and pack-quantized alike. Knows no checks.

Legend: N output channels, K input channels, G groups, P = 32 / bits codes of a word.
"""

from __future__ import annotations

from typing import Any

import torch

from strata.kernels.triton_support.operators import define_filler


def _plain(
    words: torch.Tensor,
    zeros: torch.Tensor | None,
    scales: torch.Tensor,
    column_group: torch.Tensor | None,
    bits: int,
    group_size: int,
    ones: int,
    is_awq: bool,
    along_columns: bool,
    out: torch.Tensor,
) -> None:
    """The whole matrix at once: what the kernel computes, for tensors on CPUs that stand for a card's."""
    num_rows, num_columns = out.shape
    n = torch.arange(num_rows)
    k = torch.arange(num_columns)
    groups = (k // group_size if column_group is None else column_group).long()
    codes = _fields(words, k if along_columns else n, bits, is_awq, 1 if along_columns else 0).float()
    middle = torch.full((num_rows, scales.shape[1]), 1 << (bits - 1))
    zero = middle if zeros is None else _fields(zeros + ones, n, bits, is_awq, 0)
    out.copy_((codes - zero.float()[:, groups]) * scales.float()[:, groups])


def _fields(words: torch.Tensor, at: torch.Tensor, bits: int, is_awq: bool, axis: int) -> torch.Tensor:
    """Field numbers `at` of words that are packed along an axis."""
    field = at % (32 // bits)
    shift = (field // 2 + field % 2 * 4) * 4 if is_awq else field * bits
    shift = (shift[None, :] if axis else shift[:, None]).int()
    return words.index_select(axis, at // (32 // bits)) >> shift & ((1 << bits) - 1)


def _on_card(*arguments: Any) -> None:
    from strata.kernels.dequant.triton_kernels import launch_packed

    launch_packed(*arguments)


decode_packed = define_filler(
    "decode_packed",
    "Tensor words, Tensor? zeros, Tensor scales, Tensor? column_group, int bits, int group_size, int ones, "
    "bool is_awq, bool along_columns",
    _plain,
    _on_card,
)
"""(words [N, K / P] along columns, else [N / P, K]; zero points [N / P, G] or None for the middle of
the codes; scales [N, G]; int32 [K] group of every column or None) fills out [N, K] with
(code - zero point) * scale."""
