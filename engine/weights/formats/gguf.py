"""Weights of GGUF files, in any of ggml's storage types that strata decodes.

A tensor's rows are whole blocks, so rows can be read alone. What llama.cpp's converter did to a tensor is
undone as it is decoded: rows of queries and keys go back into transformers' order, Gemma's norms lose 1.
Source: docs/gguf.md of ggml; the blocks in kernels/dequant/gguf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from strata.engine.weights.formats.stored_weight import StoredWeight
from strata.engine.weights.safetensors_file import StoredTensor
from strata.kernels.dequant.gguf.dequantize import BLOCK_TYPES, GgufParts, dequantize_gguf

PART = "packed"


@dataclass(frozen=True, kw_only=True, eq=False)
class GgufWeight(StoredWeight):
    """Blocks of one storage type: "packed" uint8 [..., bytes of a row]; a vector's rows are its numbers.

    Attributes:
        row_order: int64 [N], the stored row of every row; None where they are the same.
        offset: added in float32.
    """

    row_order: torch.Tensor | None = None
    offset: float = 0.0

    @property
    def rows(self) -> StoredTensor | None:
        """See StoredWeight."""
        return self.parts[PART] if self.row_order is None else None

    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """As ggml does, in float32, rounded once."""
        packed = tensors[PART]
        matrix = packed.view(-1, packed.shape[-1])
        stored = GgufParts(
            packed=matrix,
            type_name=self.format_name.upper(),
            row_order=self.row_order,
            offset=self.offset,
        )
        dequantize_gguf(stored, out.view(len(matrix), -1))
        return out


KINDS: dict[str, type[GgufWeight]] = {
    name: type(f"{name}Weight", (GgufWeight,), {"format_name": name.lower()}) for name in BLOCK_TYPES
}
"""By ggml's name of the storage type."""
