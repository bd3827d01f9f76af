"""torch._int_mm, block by block, with scales, outlier columns and bias in float32: on CPU and CUDA.

The int32 product of a block of outputs becomes float32 in place, is scaled while it is in cache, and is
written once in the dtype asked for.
Legend: T tokens, N output channels, K input channels, B output channels of a block.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import ClassVar

import torch

from strata.kernels.int8_linear.backend import ProductRequest
from strata.kernels.int8_linear.quantize import CODE_MAX, Int8Activations

BLOCK_TOKENS = {"cpu": 1 << 10, "cuda": 1 << 14}
BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Outputs of a block, 4 bytes each: 8 MiB on CPU, to stay in its last cache; 256 MiB on CUDA."""

CUDA_MULTIPLE = 8
CUDA_MIN_TOKENS = 24
"""torch._int_mm on CUDA takes more than 16 rows, and K and N that are multiples of 8."""

logger = logging.getLogger(__name__)


class IntMmBackend:
    """torch._int_mm where it is right, else float32 products of codes."""

    name: ClassVar[str] = "int_mm"

    def takes(self, request: ProductRequest) -> bool:
        """Anything."""
        return True

    def multiply(
        self,
        x: Int8Activations,
        codes_NK: torch.Tensor,
        scale_N: torch.Tensor,
        bias_N: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """See `Int8Backend`."""
        num_tokens, num_outputs = len(x.codes_TK), len(codes_NK)
        output = torch.empty(num_tokens, num_outputs, dtype=dtype, device=codes_NK.device)
        block_tokens, block_outputs = _block_shape(num_tokens, num_outputs, codes_NK.device)
        on_cpu = codes_NK.device.type == "cpu"
        scratch = torch.empty(block_tokens * block_outputs if on_cpu else 0, dtype=torch.int32)
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
    """The product [T, B] of a block, as float32; in `scratch` (int32) on a CPU, else in fresh memory."""
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
