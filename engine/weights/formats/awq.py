"""AWQ weights of the GEMM version, as AutoAWQ saves them.

On disk a module holds `qweight` int32 [K, N / 8], `qzeros` int32 [G, N / 8] and `scales` [G, N]; its `bias`
is plain. weight = scale * (code - zero point). Legend: N output channels, K input channels, G groups.
Source: Lin et al. 2024, AWQ; storage as in AutoAWQ's WQLinear_GEMM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from strata.engine.types import InputError
from strata.engine.weights.formats.stored_weight import (
    SCALE_DTYPES,
    ReadSmall,
    StoredWeight,
    expect_dtype,
    expect_matrix,
    expect_shape,
    modules_with,
    take_parts,
)
from strata.engine.weights.safetensors_file import StoredTensor
from strata.kernels.dequant.packed_int4 import dequantize_awq

PARTS = {"qweight": ".qweight", "qzeros": ".qzeros", "scales": ".scales"}
CODES_PER_WORD = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class AwqWeight(StoredWeight):
    """weight[n, k] = scales[g, n] * (code[k, n] - zero[g, n]) with g = k // group_size."""

    format_name = "awq"

    group_size: int

    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """In float32, transposed and rounded once."""
        return dequantize_awq(tensors["qweight"], tensors["qzeros"], tensors["scales"], self.group_size, out)


def collect(
    settings: Mapping[str, Any], stored: Mapping[str, StoredTensor], read: ReadSmall
) -> list[StoredWeight]:
    """Every AWQ weight; which modules these are is told by what is stored.

    Raises:
        InputError: a version other than GEMM, bits other than 4, a missing part, or one of another shape.
    """
    _check_settings(settings)
    group_size = settings.get("group_size", 128)
    return [_weight(module, stored, group_size) for module in modules_with(stored, list(PARTS.values()))]


def _check_settings(settings: Mapping[str, Any]) -> None:
    version = settings.get("version") or settings.get("format") or "gemm"
    group_size = settings.get("group_size", 128)
    if str(version).lower() != "gemm":
        raise InputError(f"quantization_config: version is {version!r}; expected 'gemm'")
    if settings.get("bits", 4) != 4:
        raise InputError(f"quantization_config: bits is {settings['bits']}; expected 4")
    if not settings.get("zero_point", True):
        raise InputError(f"quantization_config: zero_point is {settings['zero_point']}; expected true")
    if not isinstance(group_size, int) or (group_size <= 0 and group_size != -1):
        raise InputError(f"quantization_config: group_size is {group_size}; expected -1 or a positive number")


def _weight(module: str, stored: Mapping[str, StoredTensor], group_size: int) -> AwqWeight:
    parts = take_parts(stored, module, PARTS)
    for part in parts.values():
        expect_matrix(part)
    qweight, qzeros, scales = (parts[role] for role in PARTS)
    num_inputs, num_outputs = qweight.shape[0], qweight.shape[1] * CODES_PER_WORD
    size = num_inputs if group_size == -1 else group_size
    if num_inputs % size:
        raise InputError(
            f"{qweight.file}: tensor {qweight.name} has {num_inputs} rows; expected a multiple of "
            f"quantization_config's group_size {size}"
        )
    expect_dtype(qweight, "I32")
    expect_dtype(qzeros, "I32")
    expect_dtype(scales, *SCALE_DTYPES)
    expect_shape(qzeros, (num_inputs // size, qweight.shape[1]))
    expect_shape(scales, (num_inputs // size, num_outputs))
    return AwqWeight(
        name=module + ".weight", shape=(num_outputs, num_inputs), parts=parts, group_size=group_size
    )
