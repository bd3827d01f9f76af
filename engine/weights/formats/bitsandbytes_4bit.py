"""Weights that transformers saved with bitsandbytes in four bits (NF4 or FP4), block scales nested or not.

On disk a module holds `weight` (two codes a byte, the weight flattened), `weight.absmax`, `weight.quant_map`,
with double quantisation `weight.nested_absmax` and `weight.nested_quant_map`, and as
`weight.quant_state.bitsandbytes__nf4` (or fp4) the bytes of a JSON object: shape, blocksize, dtype, nested_*.
Source: bitsandbytes.functional.QuantState.as_dict(packed=True).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch

from strata.engine.json_files import parse_json
from strata.engine.types import InputError
from strata.engine.weights.formats.stored_weight import (
    ReadSmall,
    StoredWeight,
    expect_dtype,
    expect_shape,
    modules_with,
    take_parts,
)
from strata.engine.weights.safetensors_file import StoredTensor
from strata.kernels.dequant.four_bit import dequantize_4bit, dequantize_absmax
from strata.kernels.dequant.parts import FourBitParts

STATE = ".weight.quant_state.bitsandbytes__"
PARTS = {"codes": ".weight", "absmax": ".weight.absmax", "quant_map": ".weight.quant_map"}
NESTED_PARTS = {"nested_absmax": ".weight.nested_absmax", "nested_quant_map": ".weight.nested_quant_map"}


@dataclass(frozen=True, kw_only=True, eq=False)
class FourBitWeight(StoredWeight):
    """weight = quant_map[code] * absmax of its block; without `nested_blocksize` absmax is stored plain."""

    blocksize: int
    nested_blocksize: int | None = None
    nested_offset: float = 0.0

    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """As bitsandbytes does, in float32, rounded once; the codes may be stored under any dtype."""
        absmax = tensors["absmax"]
        if self.nested_blocksize is not None:
            absmax = dequantize_absmax(
                absmax,
                tensors["nested_quant_map"],
                tensors["nested_absmax"],
                self.nested_blocksize,
                self.nested_offset,
            )
        stored = FourBitParts(
            packed=tensors["codes"].reshape(-1).view(torch.uint8),
            absmax=absmax,
            quant_map=tensors["quant_map"],
            blocksize=self.blocksize,
        )
        dequantize_4bit(stored, out.view(-1, self.shape[-1]))
        return out


class Nf4Weight(FourBitWeight):
    """Codes mean the quantiles of a normal distribution."""

    format_name = "nf4"


class Fp4Weight(FourBitWeight):
    """Codes mean four-bit floating-point numbers."""

    format_name = "fp4"


KINDS: dict[str, type[FourBitWeight]] = {"nf4": Nf4Weight, "fp4": Fp4Weight}


def collect(
    settings: Mapping[str, Any], stored: Mapping[str, StoredTensor], read: ReadSmall
) -> list[StoredWeight]:
    """Every four-bit weight; which modules these are is told by what is stored, not by the settings.

    Raises:
        InputError: a part is missing, has another shape than its quantisation state says, or cannot be read.
    """
    suffixes = [*(STATE + kind for kind in KINDS), ".weight.absmax", ".weight.quant_map"]
    packed = [name.removesuffix(".weight") for name, tensor in stored.items() if _looks_packed(tensor)]
    modules = dict.fromkeys([*modules_with(stored, suffixes), *packed])
    return [_weight(module, stored, read) for module in modules]


def _looks_packed(tensor: StoredTensor) -> bool:
    return tensor.name.endswith(".weight") and tensor.dtype == "U8"


def _weight(module: str, stored: Mapping[str, StoredTensor], read: ReadSmall) -> FourBitWeight:
    parts = take_parts(stored, module, PARTS)
    kind = next((kind for kind in KINDS if module + STATE + kind in stored), "nf4")
    state_tensor = take_parts(stored, module, PARTS | {"state": STATE + kind})["state"]
    state = _read_state(state_tensor, read)
    nested = "nested_blocksize" in state
    if nested:
        parts |= take_parts(stored, module, PARTS | NESTED_PARTS)
    _check_parts(parts, state)
    return KINDS[kind](
        name=module + ".weight",
        shape=tuple(state["shape"]),
        parts=parts,
        blocksize=state["blocksize"],
        nested_blocksize=state["nested_blocksize"] if nested else None,
        nested_offset=float(state["nested_offset"]) if nested else 0.0,
    )


def _read_state(tensor: StoredTensor, read: ReadSmall) -> dict[str, Any]:
    try:
        state = parse_json(read(tensor).view(torch.uint8).numpy().tobytes(), f"{tensor.file}: {tensor.name}")
        sizes = [*state["shape"], state["blocksize"]]
        if "nested_blocksize" in state:
            sizes.append(state["nested_blocksize"])
            float(state["nested_offset"])
        if len(state["shape"]) < 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"shape {state['shape']}, block sizes {sizes[len(state['shape']) :]}")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{tensor.file}: tensor {tensor.name} is no quantisation state of bitsandbytes ({error}); "
            "expected JSON with shape and blocksize"
        ) from None
    return state


def _check_parts(parts: Mapping[str, StoredTensor], state: Mapping[str, Any]) -> None:
    num_weights = prod(state["shape"])
    num_blocks = ceil(num_weights / state["blocksize"])
    codes, nested = parts["codes"], "nested_absmax" in parts
    if codes.num_bytes != ceil(num_weights / 2):
        raise InputError(
            f"{codes.file}: tensor {codes.name} has {codes.num_bytes} bytes; its quantisation state, of "
            f"shape {list(state['shape'])}, expects {ceil(num_weights / 2)}"
        )
    expect_dtype(parts["absmax"], "U8" if nested else "F32")
    expect_shape(parts["absmax"], (num_blocks,))
    expect_dtype(parts["quant_map"], "F32")
    expect_shape(parts["quant_map"], (16,))
    if nested:
        expect_dtype(parts["nested_absmax"], "F32")
        expect_shape(parts["nested_absmax"], (ceil(num_blocks / state["nested_blocksize"]),))
        expect_dtype(parts["nested_quant_map"], "F32")
        expect_shape(parts["nested_quant_map"], (256,))
