"""GPTQ weights as AutoGPTQ and GPTQModel save them, act-order included.

On disk a module holds `qweight` int32 [K bits / 32, N], `qzeros` int32 [G, N bits / 32], `scales` [G, N] and
`g_idx` int32 [K], the group of every input channel; its `bias` is plain. weight = scale * (code - zero
point), where checkpoint_format "gptq" stores zero points less one and "gptq_v2" as they are.
Legend: N output channels, K input channels, G groups.
Source: Frantar et al. 2023, GPTQ; storage as in AutoGPTQ's QuantLinear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import ceil
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
from strata.kernels.dequant.packed_int4 import dequantize_gptq
from strata.kernels.dequant.parts import GptqParts

PARTS = {"qweight": ".qweight", "qzeros": ".qzeros", "scales": ".scales"}
ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""By checkpoint_format: what is added to a stored zero point."""
READABLE_BITS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a module's codes are packed; `group_size` -1 is one group."""

    bits: int
    group_size: int

    def shapes(self, qweight: StoredTensor, scales: StoredTensor) -> dict[str, tuple[int, ...]]:
        """The shape of every part by role, given the first axis of the codes and the second of the scales."""
        codes_per_word = 32 // self.bits
        num_inputs, num_outputs = qweight.shape[0] * codes_per_word, scales.shape[1]
        num_groups = 1 if self.group_size == -1 else ceil(num_inputs / self.group_size)
        return {
            "qweight": (qweight.shape[0], num_outputs),
            "qzeros": (num_groups, num_outputs // codes_per_word),
            "scales": (num_groups, num_outputs),
            "g_idx": (num_inputs,),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class GptqWeight(StoredWeight):
    """weight[n, k] = scales[g, n] * (code[k, n] - zero[g, n]) with g = g_idx[k]."""

    format_name = "gptq"
    host_roles = frozenset({"g_idx"})

    packing: Packing
    zero_offset: int

    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """In float32, transposed and rounded once.

        Raises:
            InputError: g_idx names a group that has no scales.
        """
        stored = GptqParts(
            qweight=tensors["qweight"],
            qzeros=tensors["qzeros"],
            scales=tensors["scales"],
            g_idx=tensors.get("g_idx"),
            group_size=self.packing.group_size,
            zero_offset=self.zero_offset,
            bits=self.packing.bits,
        )
        try:
            return dequantize_gptq(stored, out)
        except ValueError as error:
            raise InputError(f"{self.file}: {self.name} cannot be decoded: {error}") from None


def collect(
    settings: Mapping[str, Any], stored: Mapping[str, StoredTensor], read: ReadSmall
) -> list[StoredWeight]:
    """Every GPTQ weight; which modules these are is told by what is stored.

    Raises:
        InputError: bits or a checkpoint_format that is not readable, a missing part, or one of another shape.
    """
    zero_offset = _zero_offset(settings)
    packings = _packings(settings)
    modules = modules_with(stored, list(PARTS.values()))
    return [_weight(module, stored, packings, zero_offset) for module in modules]


def _zero_offset(settings: Mapping[str, Any]) -> int:
    found = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if settings.get("is_marlin_format"):
        found = "marlin"
    if found not in ZERO_OFFSETS:
        raise InputError(
            f"quantization_config: checkpoint_format is {found!r}; expected {' or '.join(ZERO_OFFSETS)}"
        )
    return ZERO_OFFSETS[found]


def _packings(settings: Mapping[str, Any]) -> list[Packing]:
    """Those the settings name: the general one first, then those of GPTQModel's overrides a module."""
    overrides = [entry for entry in (settings.get("dynamic") or {}).values() if entry]
    all_bits = [entry["bits"] for entry in (settings, *overrides) if "bits" in entry] or [None]
    group_sizes = [settings.get("group_size", 128)]
    group_sizes += [entry["group_size"] for entry in overrides if "group_size" in entry]
    for bits in all_bits:
        if bits not in READABLE_BITS:
            raise InputError(f"quantization_config: bits is {bits}; expected 2, 4 or 8")
    for size in group_sizes:
        if not isinstance(size, int) or (size <= 0 and size != -1):
            raise InputError(f"quantization_config: group_size is {size}; expected -1 or a positive number")
    pairs = dict.fromkeys(product(all_bits, group_sizes))
    return [Packing(bits=bits, group_size=group_size) for bits, group_size in pairs]


def _weight(
    module: str, stored: Mapping[str, StoredTensor], packings: list[Packing], zero_offset: int
) -> GptqWeight:
    parts = take_parts(stored, module, PARTS, {"g_idx": ".g_idx"})
    for role in PARTS:
        expect_matrix(parts[role])
    for role in ("qweight", "qzeros", "g_idx"):
        if role in parts:
            expect_dtype(parts[role], "I32")
    expect_dtype(parts["scales"], *SCALE_DTYPES)
    packing = next((one for one in packings if _fits(one, parts)), packings[0])
    shapes = packing.shapes(parts["qweight"], parts["scales"])
    for role, part in parts.items():
        expect_shape(part, shapes[role])
    _expect_whole_words(parts["scales"], packing)
    shape = (shapes["scales"][1], shapes["g_idx"][0])
    return GptqWeight(
        name=module + ".weight", shape=shape, parts=parts, packing=packing, zero_offset=zero_offset
    )


def _fits(packing: Packing, parts: Mapping[str, StoredTensor]) -> bool:
    shapes = packing.shapes(parts["qweight"], parts["scales"])
    return all(part.shape == shapes[role] for role, part in parts.items())


def _expect_whole_words(scales: StoredTensor, packing: Packing) -> None:
    codes_per_word = 32 // packing.bits
    if scales.shape[1] % codes_per_word:
        raise InputError(
            f"{scales.file}: tensor {scales.name} has {scales.shape[1]} columns; expected a multiple of "
            f"{codes_per_word}, the zero points in a word"
        )
