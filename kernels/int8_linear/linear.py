"""The W8A8 linear: an int32 product, then scales, outlier columns and bias in float32, on CPU and CUDA.

Which kernel multiplies is chosen in choice.py. Has no gradient; knows nothing of how codes are made.
Legend: T tokens, N output channels, K input channels, U outlier columns.
"""

from __future__ import annotations

import torch

from strata.kernels.int8_linear.backend import ProductRequest
from strata.kernels.int8_linear.choice import CHOICE
from strata.kernels.int8_linear.quantize import CODE_MAX, Int8Activations

MAX_K = (2**31 - 1) // CODE_MAX**2
"""Longest sum of products of two codes that fits int32."""


def int8_linear(
    x: Int8Activations,
    codes_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """x W^T + bias from codes: the integer product is exact, all else is float32 until the result is rounded.

    Where an int8 product is not to be had (`has_int8_product` of blocked.py), the codes are multiplied in
    float32: the same up to float32's rounding, but slow. On a card the fastest of several kernels multiplies,
    as its first call with a shape measured it; outlier columns may then be rounded once more, to the dtype.

    Args:
        x: activations of T tokens.
        codes_NK: int8 [N, K], row-major.
        scale_N: float32 [N].
        bias_N: [N] of any float dtype, or None.
        dtype: of the result; beyond float16's range it is infinite there.

    Returns:
        [T, N]. Peak extra memory: 8 MiB on CPU, 512 MiB on CUDA, and the outlier columns of both in float32.

    Raises:
        ValueError: the tensors do not fit each other, or K exceeds 133,144, where int32 could overflow.
    """
    _check_operands(x, codes_NK, scale_N, bias_N)
    request = ProductRequest(
        device=codes_NK.device, dtype=dtype, num_outputs=len(codes_NK), num_inputs=codes_NK.shape[1]
    )
    return CHOICE.backend_for(request).multiply(x, codes_NK, scale_N, bias_N, dtype)


def _check_operands(
    x: Int8Activations, codes_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None
) -> None:
    num_inputs = x.codes_TK.shape[1]
    if codes_NK.dtype != torch.int8 or codes_NK.dim() != 2 or codes_NK.shape[1] != num_inputs:
        raise ValueError(
            f"codes_NK must be int8 [N, {num_inputs}], not {codes_NK.dtype} {list(codes_NK.shape)}"
        )
    if num_inputs > MAX_K:
        raise ValueError(
            f"K is {num_inputs}; sums of more than {MAX_K} products of codes could overflow int32"
        )
    if scale_N.dtype != torch.float32 or scale_N.shape != codes_NK.shape[:1]:
        raise ValueError(
            f"scale_N must be float32 [{len(codes_NK)}], not {scale_N.dtype} {list(scale_N.shape)}"
        )
    if bias_N is not None and bias_N.shape != codes_NK.shape[:1]:
        raise ValueError(f"bias_N must have shape [{len(codes_NK)}], not {list(bias_N.shape)}")
