"""Weights that transformers saved with bitsandbytes in eight bits (LLM.int8()).

On disk a module holds `weight` int8 [N, K], `SCB` float32 [N], the largest magnitude of each row, and
`weight_format`, a number that says in which order the bytes lie. weight = code * SCB / 127. At run time
bitsandbytes also rounds activations to int8; here the weights alone decide.
Source: Dettmers et al. 2022, LLM.int8(), section 3.1; storage as in bitsandbytes.nn.Linear8bitLt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.engine.types import InputError
from strata.engine.weights.formats.stored_weight import (
    ChannelInt8Weight,
    ReadSmall,
    StoredWeight,
    expect_dtype,
    expect_matrix,
    expect_shape,
    modules_with,
    take_parts,
)
from strata.engine.weights.safetensors_file import StoredTensor

LAYOUTS = {0: "row", 1: "col32", 2: "col_turing", 3: "col_ampere"}
"""What `weight_format` may say; all but the first belong to GPUs of the past."""


def collect(
    settings: Mapping[str, Any], stored: Mapping[str, StoredTensor], read: ReadSmall
) -> list[StoredWeight]:
    """Every eight-bit weight; which modules these are is told by what is stored, not by the settings.

    Raises:
        InputError: a part is missing, has another shape or dtype, or bytes in an order other than rows.
    """
    codes = [name.removesuffix(".weight") for name, tensor in stored.items() if _looks_quantized(tensor)]
    modules = dict.fromkeys([*modules_with(stored, [".SCB"]), *codes])
    return [_weight(module, stored, read) for module in modules]


def _looks_quantized(tensor: StoredTensor) -> bool:
    return tensor.name.endswith(".weight") and tensor.dtype == "I8"


def _weight(module: str, stored: Mapping[str, StoredTensor], read: ReadSmall) -> StoredWeight:
    parts = take_parts(stored, module, {"codes": ".weight", "scale": ".SCB"})
    codes, scale = parts["codes"], parts["scale"]
    expect_dtype(codes, "I8")
    expect_matrix(codes)
    expect_dtype(scale, "F32")
    expect_shape(scale, codes.shape[:1])
    if module + ".weight_format" in stored:
        _check_layout(stored[module + ".weight_format"], read)
    return ChannelInt8Weight(name=module + ".weight", shape=codes.shape, parts=parts, scale_factor=1 / 127)


def _check_layout(tensor: StoredTensor, read: ReadSmall) -> None:
    found = {int(value) for value in read(tensor).reshape(-1)}
    if found != {0}:
        names = ", ".join(LAYOUTS.get(value, str(value)) for value in sorted(found))
        raise InputError(f"{tensor.file}: tensor {tensor.name} says {names}; expected row (0)")
