"""What a way of multiplying int8 codes is. Knows no backend: registry.py lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from strata.kernels.int8_linear.quantize import Int8Activations


@dataclass(frozen=True, kw_only=True)
class ProductRequest:
    """A linear layer before there are activations.

    Attributes:
        device: where it is computed.
        dtype: of the result.
        num_outputs: N.
        num_inputs: K.
    """

    device: torch.device
    dtype: torch.dtype
    num_outputs: int
    num_inputs: int

    @property
    def shape_name(self) -> str:
        """What logs and files call it, whatever the card."""
        return f"{str(self.dtype).removeprefix('torch.')} {self.num_outputs}x{self.num_inputs}"


class Int8Backend(Protocol):
    """A way to compute x W^T + bias from codes; all give the same up to rounding."""

    @property
    def name(self) -> str:
        """What logs and files call it."""

    def takes(self, request: ProductRequest) -> bool:
        """Whether it can compute what is asked, on this card."""

    def multiply(
        self,
        x: Int8Activations,
        codes_NK: torch.Tensor,
        scale_N: torch.Tensor,
        bias_N: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The result [T, N] of the dtype; the arguments are those of `int8_linear`."""
