"""Codes dequantised and multiplied in the dtype of the result: what a card falls back on.

Legend: T tokens, N output channels, K input channels, U outlier columns.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from strata.kernels.int8_linear.backend import ProductRequest
from strata.kernels.int8_linear.quantize import Int8Activations


class FloatBackend:
    """A product of floats on a card. Peak extra memory: weight and activations in the dtype."""

    name: ClassVar[str] = "float"

    def takes(self, request: ProductRequest) -> bool:
        """Cards; on a CPU the blocked way does the same with less memory."""
        return request.device.type == "cuda"

    def multiply(
        self,
        x: Int8Activations,
        codes_NK: torch.Tensor,
        scale_N: torch.Tensor,
        bias_N: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """See `Int8Backend`; both operands are rounded to the dtype once more."""
        weight_NK = codes_NK.to(dtype).mul_(scale_N[:, None])
        rounded_TK = x.codes_TK.to(dtype).mul_(x.scale_T[:, None])
        if x.outliers_TU is not None:
            rounded_TK.index_copy_(1, x.outlier_columns, x.outliers_TU.to(dtype))
        return torch.nn.functional.linear(rounded_TK, weight_NK, None if bias_N is None else bias_N.to(dtype))
