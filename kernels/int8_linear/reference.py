"""The oracle: the W8A8 linear from its definition in float64. Slow, obvious, used by tests only.

Shapes: x [T, K], codes [N, K] int8, scale [N] float32, bias [N].
"""

from __future__ import annotations

import math

import torch


def int8_linear_reference(
    x_TK: torch.Tensor,
    codes_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None,
    spread: float = 3.0,
    num_outliers: int | None = None,
) -> torch.Tensor:
    """[T, N] float64: x, rounded outside its outlier columns, times the dequantised weight, plus the bias.

    Only the token's scale and the quotient that is rounded are float32, since they are by definition.
    """
    outlier = reference_outlier_columns(x_TK, spread, num_outliers)
    rounded_TK = x_TK.double()
    for token, row in enumerate(x_TK.float()):
        kept = row.clone()
        kept[outlier] = 0.0
        absmax = kept.abs().max()
        scale = torch.ones(()) if absmax == 0 else (absmax / 127).clamp(min=torch.finfo(torch.float32).tiny)
        dequantised = (kept / scale).round().double() * scale.double()
        rounded_TK[token] = torch.where(outlier, x_TK[token].double(), dequantised)
    product = rounded_TK @ (codes_NK.double() * scale_N.double()[:, None]).T
    return product if bias_N is None else product + bias_N.double()


def reference_outlier_columns(
    x_TK: torch.Tensor, spread: float, num_outliers: int | None = None
) -> torch.Tensor:
    """Bool [K]: the columns whose largest |x| is above `spread` times the (lower) median of all columns'.

    At most K // 16, those of the largest |x|; none where a value is NaN. Or the `num_outliers` of the largest
    |x|, where that is given.
    """
    num_columns = x_TK.shape[1]
    absmax = [max((abs(value) for value in column), default=0.0) for column in x_TK.double().T.tolist()]
    threshold = (
        spread * sorted(absmax)[(num_columns - 1) // 2] if not any(map(math.isnan, absmax)) else math.nan
    )
    above = [k for k in range(num_columns) if num_outliers is not None or absmax[k] > threshold]
    above.sort(key=lambda k: -absmax[k])
    outlier = torch.zeros(num_columns, dtype=torch.bool)
    outlier[above[: num_columns // 16 if num_outliers is None else num_outliers]] = True
    return outlier
