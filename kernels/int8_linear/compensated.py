"""Rounds a weight to int8 so that its rounding errors cancel on inputs as they are.

A column's error is made up for by the columns that are rounded after it, as far as their inputs go together;
columns whose inputs are largest come first. Knows nothing of where inputs are from.
Legend: N output channels, K input channels, B columns that are compensated together, S of a step.
"""

from __future__ import annotations

import torch

from strata.kernels.int8_linear.quantize import CODE_MAX, quantize_weight

DAMPING = 0.01
"""Of the mean second moment, added to all: inputs that were never seen are not believed to be zero."""
STEP_COLUMNS = 64
"""Columns whose errors are carried to the rest of a block at once, as one product."""


def quantize_weight_compensated(
    weight_NK: torch.Tensor, moments: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes -127..127 with a scale a channel, absmax / 127, that change the products with inputs least.

    Args:
        weight_NK: [N, K] of any float dtype.
        moments: float32 [ceil(K / B), B, B], sums of x x^T over inputs, of each B columns; the last block is
            filled up with zeros.

    Returns:
        codes int8 [N, K] and scale float32 [N]. Peak extra memory: twice the weight in float32.

    Raises:
        ValueError: the moments do not fit the weight.

    Source: Frantar et al. 2022, GPTQ, arXiv 2210.17323, algorithm 1, with act-order, on diagonal blocks.
    """
    block = moments.shape[-1]
    if moments.shape != (-(-weight_NK.shape[1] // block), block, block):
        raise ValueError(
            f"moments have shape {list(moments.shape)}; expected [ceil(K / B), B, B] of a weight "
            f"{list(weight_NK.shape)}"
        )
    codes_NK, scale_N = quantize_weight(weight_NK)
    for number, moments_BB in enumerate(moments):
        columns = slice(number * block, min((number + 1) * block, weight_NK.shape[1]))
        size = columns.stop - columns.start
        codes_NK[:, columns] = _round_block(weight_NK[:, columns], scale_N, moments_BB[:size, :size])
    return codes_NK, scale_N


def _round_block(weight_NB: torch.Tensor, scale_N: torch.Tensor, moments_BB: torch.Tensor) -> torch.Tensor:
    """Codes [N, B], as floats."""
    order = moments_BB.diagonal().argsort(descending=True)
    carry_BB = _carried_errors(moments_BB[order][:, order])
    # Columns lie in rows here: each is read and written in one piece.
    rest_BN = weight_NB.t()[order].float() / scale_N
    codes_BN = torch.empty_like(rest_BN)
    for start in range(0, len(order), STEP_COLUMNS):
        end = min(start + STEP_COLUMNS, len(order))
        errors_SN = torch.empty_like(rest_BN[start:end])
        for column in range(start, end):
            torch.round(rest_BN[column], out=codes_BN[column]).clamp_(-CODE_MAX, CODE_MAX)
            error_N = (rest_BN[column] - codes_BN[column]) / carry_BB[column, column]
            rest_BN[column:end].addr_(carry_BB[column, column:end], error_N, alpha=-1)
            errors_SN[column - start] = error_N
        rest_BN[end:].addmm_(carry_BB[start:end, end:].t(), errors_SN, alpha=-1)
    restored_BN = torch.empty_like(codes_BN)
    restored_BN[order] = codes_BN
    return restored_BN.t()


def _carried_errors(moments_BB: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of damped moments: how errors are carried to later columns."""
    damped_BB = moments_BB.double()
    damping = DAMPING * damped_BB.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped_BB = damped_BB + damping * torch.eye(len(damped_BB), dtype=torch.float64)
    inverse_BB = torch.cholesky_inverse(torch.linalg.cholesky(damped_BB))
    return torch.linalg.cholesky(inverse_BB, upper=True).float()
