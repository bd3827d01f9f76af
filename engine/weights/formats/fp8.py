"""Float8 (e4m3fn) weights with a scale a block, a channel or a tensor.

On disk `X` float8 [N, K] stands beside `X_scale_inv` (quant_method fp8: DeepSeek and transformers'
fine-grained fp8; a factor in spite of its name) or `X_scale` (fbgemm_fp8 and others); X is "....weight", or a
tensor of fused experts [E, N, K]. weight = code * scale. Scales of activations are not asked for: the weights
alone decide.
Source: DeepSeek-V3 technical report, section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from strata.engine.types import InputError
from strata.engine.weights.formats.stored_weight import (
    SCALE_DTYPES,
    ReadSmall,
    StoredWeight,
    expect_dtype,
    expect_shape,
    modules_with,
    take_parts,
)
from strata.engine.weights.safetensors_file import StoredTensor
from strata.kernels.dequant.fp8 import dequantize_fp8_blocks, dequantize_fp8_channels

DEFAULT_BLOCK = (128, 128)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fp8Weight(StoredWeight):
    """Codes float8_e4m3fn [N, K] or [E, N, K] times a scale: a block, or without `block_size` coarser."""

    format_name = "fp8"

    block_size: tuple[int, int] | None

    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """In float32, expert by expert, rounded once."""
        codes, scale = tensors["codes"], tensors["scale"]
        if codes.ndim == 2:
            self._decode_matrix(codes, scale, out)
        else:
            for codes_NK, scale_of_expert, out_NK in zip(codes, scale, out, strict=True):
                self._decode_matrix(codes_NK, scale_of_expert, out_NK)
        return out

    def _decode_matrix(self, codes: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
        if self.block_size is None:
            dequantize_fp8_channels(codes, scale, out)
        else:
            dequantize_fp8_blocks(codes, scale, self.block_size, out)


def collect(
    settings: Mapping[str, Any], stored: Mapping[str, StoredTensor], read: ReadSmall
) -> list[StoredWeight]:
    """Every float8 weight; which these are is told by what is stored.

    Raises:
        InputError: a missing scale, another kind of float8, or a scale of another shape.
    """
    block_size = _block_size(settings)
    codes = [
        name for name, tensor in stored.items() if tensor.dtype.startswith("F8_E") and "scale" not in name
    ]
    scaled = [name for name in modules_with(stored, ["_scale"]) if name.endswith("weight")]
    names = dict.fromkeys([*modules_with(stored, ["_scale_inv"]), *scaled, *codes])
    usual = "_scale_inv" if settings.get("quant_method") == "fp8" else "_scale"
    return [_weight(name, stored, block_size, usual) for name in names]


def _block_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    if settings.get("quant_method") != "fp8":
        return None
    found = settings.get("weight_block_size", DEFAULT_BLOCK)
    if found is None:
        return None
    numbers = found if isinstance(found, list | tuple) else ()
    if len(numbers) != 2 or not all(isinstance(size, int) and size > 0 for size in numbers):
        raise InputError(f"quantization_config: weight_block_size is {found}; expected two positive numbers")
    return (found[0], found[1])


def _weight(
    name: str, stored: Mapping[str, StoredTensor], block_size: tuple[int, int] | None, usual: str
) -> Fp8Weight:
    suffix = next((suffix for suffix in ("_scale_inv", "_scale") if name + suffix in stored), usual)
    roles = {"codes": "", "scale": suffix}
    # The part that is there comes first: messages name its file.
    parts = take_parts(stored, name, roles if name in stored else dict(reversed(roles.items())))
    return fp8_weight(name, parts, block_size if suffix == "_scale_inv" else None)


def fp8_weight(name: str, parts: Mapping[str, StoredTensor], block_size: tuple[int, int] | None) -> Fp8Weight:
    """A float8 weight of parts "codes" and "scale".

    Raises:
        InputError: another dtype, or a scale of a shape that neither the blocks nor a scale a channel or a
            tensor explain.
    """
    codes, scale = parts["codes"], parts["scale"]
    expect_dtype(codes, "F8_E4M3")
    expect_dtype(scale, *SCALE_DTYPES)
    if len(codes.shape) not in (2, 3):
        raise InputError(
            f"{codes.file}: tensor {codes.name} has shape {list(codes.shape)}; expected a matrix"
        )
    *experts, num_rows, num_columns = codes.shape
    if block_size is not None:
        blocks = (ceil(num_rows / block_size[0]), ceil(num_columns / block_size[1]))
        expect_shape(scale, (*experts, *blocks))
    elif scale.shape not in _coarse_shapes(codes.shape):
        expect_shape(scale, (*experts, num_rows, 1))
    return Fp8Weight(name=name, shape=codes.shape, parts=parts, block_size=block_size)


def _coarse_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes of a scale a channel or a tensor, for codes of a shape."""
    channels, experts = shape[:-1], shape[:-2]
    return ((*channels, 1), channels, (*experts, 1, 1), (*experts, 1), experts)
