"""The W8A8 linear: an int32 product, then scales, outlier columns and bias in float32, on CPU and CUDA.

Works block by block: the int32 product of a block of outputs becomes float32 in place, is scaled while it is
in cache, and is written once in the dtype asked for. Has no gradient; knows nothing of how codes are made.
Legend: T tokens, N output channels, K input channels, B output channels of a block, U outlier columns.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from strata.kernels.int8_linear.quantize import CODE_MAX, Int8Activations

BLOCK_TOKENS = {"cpu": 1 << 10, "cuda": 1 << 14}
BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Outputs of a block, 4 bytes each: 8 MiB on CPU, to stay in its last cache; 256 MiB on CUDA."""

MAX_K = (2**31 - 1) // CODE_MAX**2
"""Longest sum of products of two codes that fits int32."""

CUDA_MULTIPLE = 8
CUDA_MIN_TOKENS = 24
"""torch._int_mm on CUDA takes more than 16 rows, and K and N that are multiples of 8."""

logger = logging.getLogger(__name__)


def int8_linear(
    x: Int8Activations,
    codes_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """x W^T + bias from codes: the integer product is exact, all else is float32 until the result is rounded.

    Where an int8 product is not to be had (`has_int8_product`), the codes are multiplied in float32: the
    same up to float32's rounding, but slow.

    Args:
        x: activations of T tokens.
        codes_NK: int8 [N, K], row-major.
        scale_N: float32 [N].
        bias_N: [N] of any float dtype, or None.
        dtype: of the result; beyond float16's range it is infinite there.

    Returns:
        [T, N]. Peak extra memory: 8 MiB on CPU, 256 MiB on CUDA, and the outlier columns of both in float32.

    Raises:
        ValueError: the tensors do not fit each other, or K exceeds 133,144, where int32 could overflow.
    """
    _check_operands(x, codes_NK, scale_N, bias_N)
    num_tokens, num_outputs = len(x.codes_TK), len(codes_NK)
    output = torch.empty(num_tokens, num_outputs, dtype=dtype, device=codes_NK.device)
    block_tokens, block_outputs = _block_shape(num_tokens, num_outputs, codes_NK.device)
    scratch = torch.empty(block_tokens * block_outputs, dtype=torch.int32, device=codes_NK.device)
    for first in range(0, num_tokens, block_tokens):
        tokens = slice(first, min(first + block_tokens, num_tokens))
        for start in range(0, num_outputs, block_outputs):
            outputs = slice(start, min(start + block_outputs, num_outputs))
            product = _multiply_codes(x.codes_TK[tokens], codes_NK[outputs], scratch)
            product.mul_(x.scale_T[tokens, None]).mul_(scale_N[outputs])
            if x.outliers_TU is not None:
                weight_BU = codes_NK[outputs].index_select(1, x.outlier_columns).float()
                weight_BU.mul_(scale_N[outputs, None])
                product.addmm_(x.outliers_TU[tokens].float(), weight_BU.t())
            if bias_N is not None:
                product.add_(bias_N[outputs])
            output[tokens, outputs] = product
    return output


def has_int8_product(num_outputs: int, num_inputs: int, device: torch.device) -> bool:
    """Whether `int8_linear` runs on int8 hardware for a weight [num_outputs, num_inputs] on this device.

    Not on CUDA when either is no multiple of 8, and not on an x86 CPU without VNNI, where torch._int_mm is
    wrong: oneDNN then adds pairs of products in int16, which saturates in silence.

    Source: oneDNN developer guide, "Nuances of int8 computations".
    """
    if device.type == "cuda":
        return num_outputs % CUDA_MULTIPLE == 0 and num_inputs % CUDA_MULTIPLE == 0
    return _cpu_product_is_exact()


@lru_cache(maxsize=1)
def _cpu_product_is_exact() -> bool:
    """Tries the largest codes, in both signs."""
    codes = torch.full((64, 64), CODE_MAX, dtype=torch.int8)
    expected = 64 * CODE_MAX**2
    products = (torch._int_mm(codes, codes.t()), -torch._int_mm(codes, codes.neg().t()))
    exact = all(bool((product == expected).all()) for product in products)
    if not exact:
        logger.info("int8 products are inexact on this CPU (no VNNI): int8 codes are multiplied in float32")
    return exact


def _multiply_codes(x_TK: torch.Tensor, codes_BK: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """The product [T, B] of a block, as float32; it lies in `scratch` (int32), or in fresh memory."""
    num_tokens, num_outputs = len(x_TK), len(codes_BK)
    if not has_int8_product(num_outputs, x_TK.shape[1], x_TK.device):
        return x_TK.float() @ codes_BK.float().t()
    if x_TK.device.type == "cuda":
        padding = max(-num_tokens % CUDA_MULTIPLE, CUDA_MIN_TOKENS - num_tokens)
        product = torch._int_mm(torch.nn.functional.pad(x_TK, (0, 0, 0, padding)), codes_BK.t())[:num_tokens]
    else:
        product = scratch[: num_tokens * num_outputs].view(num_tokens, num_outputs)
        torch._int_mm(x_TK, codes_BK.t(), out=product)
    # In place: an element is read before it is written, and both take 4 bytes.
    return product.view(torch.float32).copy_(product)


def _block_shape(num_tokens: int, num_outputs: int, device: torch.device) -> tuple[int, int]:
    """Tokens and outputs of a block, at least one each; in several blocks, outputs keep CUDA's multiple."""
    block_tokens = max(1, min(num_tokens, BLOCK_TOKENS[device.type]))
    block_outputs = BLOCK_ELEMENTS[device.type] // block_tokens // CUDA_MULTIPLE * CUDA_MULTIPLE
    return block_tokens, max(1, min(num_outputs, block_outputs))


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
