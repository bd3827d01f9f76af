"""int8 linears by our own CUDA kernel, on cards of sm75 and newer.

Legend: T tokens, N output channels, K input channels, U outlier columns.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from strata.kernels.int8_linear.backend import ProductRequest
from strata.kernels.int8_linear.cuda.card_kernels import (
    INPUTS_MULTIPLE,
    MULTIPLE_OF_ADDRESS,
    OUTPUTS_MULTIPLE,
    card_kernels,
)
from strata.kernels.int8_linear.quantize import Int8Activations


class CudaBackend:
    """One launch: int8 product on tensor cores, scales and bias in its epilogue."""

    name: ClassVar[str] = "cuda"

    def takes(self, request: ProductRequest) -> bool:
        """Widths that are multiples of 16, on cards where the kernel can be had and is right."""
        return (
            request.num_outputs % OUTPUTS_MULTIPLE == 0
            and request.num_inputs % INPUTS_MULTIPLE == 0
            and card_kernels(request.device, request.dtype) is not None
        )

    def multiply(
        self,
        x: Int8Activations,
        codes_NK: torch.Tensor,
        scale_N: torch.Tensor,
        bias_N: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """See `Int8Backend`; outlier columns are a product in the dtype, which the epilogue adds."""
        kernels = card_kernels(codes_NK.device, dtype)
        assert kernels is not None
        codes_TK, codes_NK = (_aligned(codes.contiguous()) for codes in (x.codes_TK, codes_NK))
        addend_TN = None
        if x.outliers_TU is not None:
            weight_NU = (codes_NK.index_select(1, x.outlier_columns) * scale_N[:, None]).to(dtype)
            addend_TN = torch.nn.functional.linear(x.outliers_TU.to(dtype), weight_NU)
        scales = (x.scale_T.contiguous(), scale_N.contiguous())
        return kernels.int8_gemm(codes_TK, scales[0], codes_NK, scales[1], bias_N, addend_TN)


def _aligned(codes: torch.Tensor) -> torch.Tensor:
    return codes if codes.data_ptr() % MULTIPLE_OF_ADDRESS == 0 else codes.clone()
