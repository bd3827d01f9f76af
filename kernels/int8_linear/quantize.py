"""Rounds weights to int8 with a scale an output channel, and activations with a scale a token.

Knows nothing of the matrix product. Legend: T tokens, N output channels, K input channels, U outlier columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strata.kernels.int8_linear.cuda.card_kernels import WIDTH_MULTIPLE, card_kernels

CODE_MAX = 127
"""Largest code: -128 is not used, so that the range is symmetric."""

MAX_OUTLIER_SHARE = 16
"""At most one column in this many is kept out of the codes."""

OUTLIER_SPREAD = 3.0
"""Largest value of an outlier column over the median column's. SmolLM2 has 2% of such columns; with them
apart int8 changes its logits 0.54 times as much as with LLM.int8()'s threshold of 6, with 1/16 of all columns
apart 0.50 times. Columns of normal values have none: of 512 tokens, 1.4 at most."""

BLOCK_ELEMENTS = 1 << 20
"""Elements rounded at a time, in float32: 4 MiB, which stays in a CPU's cache and is enough for threads."""

MIN_SCALE = torch.finfo(torch.float32).tiny
"""Smallest scale of a row that is not zero: subnormal scales would be too coarse to divide by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Activations:
    """Activations of T tokens, rounded once and read by every linear that shares them.

    Attributes:
        codes_TK: int8; zero in the outlier columns.
        scale_T: float32; a code times its token's scale is the activation.
        outlier_columns: int64 [U], ascending, perhaps empty.
        outliers_TU: these columns as they were, in the activations' dtype; None when there are none.
    """

    codes_TK: torch.Tensor  # noqa: N815
    scale_T: torch.Tensor  # noqa: N815
    outlier_columns: torch.Tensor
    outliers_TU: torch.Tensor | None  # noqa: N815


def quantize_weight(
    weight_NK: torch.Tensor, out: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each output channel to codes -127..127, half to even, with scale absmax / 127.

    A channel of zeros gets scale 1. One with a NaN or an infinity gets a scale that is not finite, so that
    its outputs are not finite either. Peak extra memory: about 4 MiB, or one row in float32 if that is more.

    Args:
        weight_NK: [N, K] of any float dtype.
        out: memory for the result, overwritten: codes int8 [N, K] and scale float32 [N].

    Returns:
        codes int8 [N, K] and scale float32 [N]; those of `out` when it was given.

    Raises:
        ValueError: the weight is no float matrix, or `out` does not fit it.
    """
    _check_matrix("weight_NK", weight_NK)
    codes_NK, scale_N = out if out is not None else _allocate_codes(weight_NK)
    _check_out(weight_NK, codes_NK, scale_N)
    _round_rows(weight_NK, codes_NK, scale_N, None)
    return codes_NK, scale_N


def quantize_activations(
    x_TK: torch.Tensor, outlier_spread: float = OUTLIER_SPREAD, num_outliers: int | None = None
) -> Int8Activations:
    """Rounds each token to codes -127..127, keeping columns of large values apart.

    A column whose largest |x| is more than `outlier_spread` times the median column's is kept in x's dtype
    and does not widen the tokens' scales; of more than K // 16 such columns, the K // 16 with the largest |x|
    are kept. Where their number is known, the columns with the largest |x| are kept, and CUDA is not waited
    for. Which columns these are depends on all T tokens; with an infinite spread, or none of them, every
    token is rounded by itself. A token with a NaN or an infinity gets a scale that is not finite, or has it
    among its outliers.

    Args:
        x_TK: [T, K] of any float dtype; not changed.
        outlier_spread: positive; infinity for no outlier columns.
        num_outliers: how many columns to keep, at most K; None for those beyond the spread.

    Raises:
        ValueError: x is no float matrix, the spread is not positive, or there are not that many columns.

    Source: Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339, section 3. The cap on columns is ours, and so
    is what is large: compared with the other columns, not with 6, since how large values are at all differs
    between models and layers.
    """
    _check_matrix("x_TK", x_TK)
    if not outlier_spread > 0:
        raise ValueError(f"outlier_spread must be positive, not {outlier_spread}")
    if num_outliers is None:
        columns = _find_outlier_columns(x_TK, outlier_spread)
    elif 0 <= num_outliers <= x_TK.shape[1]:
        columns = _largest_columns(x_TK, num_outliers)
    else:
        raise ValueError(f"num_outliers must be within 0..{x_TK.shape[1]}, not {num_outliers}")
    has_outliers = len(columns) > 0
    codes_TK, scale_T = _allocate_codes(x_TK)
    _round_rows(x_TK, codes_TK, scale_T, columns if has_outliers else None)
    return Int8Activations(
        codes_TK=codes_TK,
        scale_T=scale_T,
        outlier_columns=columns,
        outliers_TU=x_TK.index_select(1, columns) if has_outliers else None,
    )


def _find_outlier_columns(x_TK: torch.Tensor, spread: float) -> torch.Tensor:
    """Ascending int64 indexes of the columns to keep apart; their number is waited for."""
    if spread == float("inf") or not len(x_TK):
        return _largest_columns(x_TK, 0)
    absmax_K = _column_absmax(x_TK).float()
    columns = (absmax_K > spread * absmax_K.median()).nonzero().flatten()
    limit = x_TK.shape[1] // MAX_OUTLIER_SHARE
    if len(columns) > limit:
        columns = columns[absmax_K[columns].topk(limit).indices].sort().values
    return columns


def _largest_columns(x_TK: torch.Tensor, num: int) -> torch.Tensor:
    """Ascending int64 indexes of so many columns with the largest |x|; none where there are no tokens."""
    if not num or not len(x_TK):
        return torch.empty(0, dtype=torch.int64, device=x_TK.device)
    return _column_absmax(x_TK).float().topk(num).indices.sort().values


def _column_absmax(x_TK: torch.Tensor) -> torch.Tensor:
    """Largest |x| [K] of each column, NaN where there is one."""
    if x_TK.device.type == "cuda":
        # One launch that reads x once. On CPUs the norm takes four times as long as what follows.
        return torch.linalg.vector_norm(x_TK, ord=float("inf"), dim=0)
    if x_TK.element_size() == 2:
        # Without their sign, 16-bit floats are ordered as integers are, which CPUs compare much faster.
        return (x_TK.view(torch.int16) & 0x7FFF).amax(dim=0).view(x_TK.dtype)
    return torch.maximum(x_TK.amax(dim=0), x_TK.amin(dim=0).neg_())


def _round_rows(
    source_RK: torch.Tensor,
    codes_RK: torch.Tensor,
    scale_R: torch.Tensor,
    skipped_columns: torch.Tensor | None,
) -> None:
    """Fills codes and scale, by one launch or block by block; skipped columns count as zero."""
    num_rows, num_columns = source_RK.shape
    kernels = card_kernels(source_RK.device, source_RK.dtype) if num_columns % WIDTH_MULTIPLE == 0 else None
    if kernels is not None and codes_RK.is_contiguous() and scale_R.is_contiguous():
        is_skipped = None
        if skipped_columns is not None:
            is_skipped = torch.zeros(num_columns, dtype=torch.uint8, device=source_RK.device)
            # Not by indexing: the 1 would come from the host, which CUDA waits for.
            is_skipped.index_fill_(0, skipped_columns, 1)
        kernels.quantize_rows(source_RK.contiguous(), codes_RK, scale_R, is_skipped)
        return
    block_rows = max(1, BLOCK_ELEMENTS // num_columns)
    scratch = source_RK.new_empty(min(block_rows, num_rows), num_columns, dtype=torch.float32)
    for start in range(0, num_rows, block_rows):
        rows = slice(start, min(start + block_rows, num_rows))
        work = scratch[: rows.stop - start].copy_(source_RK[rows])
        if skipped_columns is not None:
            work.index_fill_(1, skipped_columns, 0.0)
        _set_scale(scale_R[rows], work)
        # No clamp: the scale is absmax / 127 within 2^-24, or more, so no quotient rounds beyond 127.
        codes_RK[rows] = work.div_(scale_R[rows, None]).round_()


def _set_scale(scale_R: torch.Tensor, rows_RK: torch.Tensor) -> None:
    """absmax / 127 of each row, 1 for a row of zeros; NaN and infinity come through."""
    # Two reductions: torch's fused aminmax and infinity norm over rows take 20 times as long on CPU.
    absmax_R = torch.maximum(rows_RK.amax(dim=1), rows_RK.amin(dim=1).neg_())
    is_zero_R = absmax_R == 0
    scale_R.copy_(absmax_R.div_(CODE_MAX).clamp_(min=MIN_SCALE).masked_fill_(is_zero_R, 1.0))


def _allocate_codes(source_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty(source_RK.shape, dtype=torch.int8, device=source_RK.device),
        torch.empty(len(source_RK), dtype=torch.float32, device=source_RK.device),
    )


def _check_matrix(name: str, matrix: torch.Tensor) -> None:
    if matrix.dim() != 2 or not matrix.is_floating_point() or not matrix.shape[1]:
        raise ValueError(
            f"{name} must be a float matrix with columns, not {matrix.dtype} {list(matrix.shape)}"
        )


def _check_out(weight_NK: torch.Tensor, codes_NK: torch.Tensor, scale_N: torch.Tensor) -> None:
    if codes_NK.dtype != torch.int8 or codes_NK.shape != weight_NK.shape:
        raise ValueError(
            f"out[0] must be int8 {list(weight_NK.shape)}, not {codes_NK.dtype} {list(codes_NK.shape)}"
        )
    if scale_N.dtype != torch.float32 or scale_N.shape != weight_NK.shape[:1]:
        raise ValueError(
            f"out[1] must be float32 [{len(weight_NK)}], not {scale_N.dtype} {list(scale_N.shape)}"
        )
