"""Weights as compressed-tensors (llm-compressor) stores them: pack-, int- and float-quantized.

On disk a module holds either `weight_packed` int32 [N, K bits / 32], `weight_scale` [N, G], `weight_shape`
and perhaps `weight_zero_point` and `weight_g_idx`; or `weight` int8 or float8 [N, K] and `weight_scale`. What
is stored decides which modules are read how; the settings say bits and groups. Scales of activations and of
the KV cache are not asked for: the weights alone decide, and the rest is computed in the compute dtype.
Legend: N output channels, K input channels, G groups.
Source: compressed_tensors.compressors and compressed_tensors.quantization.quant_args.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from strata.engine.types import InputError
from strata.engine.weights.formats.fp8 import fp8_weight
from strata.engine.weights.formats.stored_weight import (
    SCALE_DTYPES,
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
from strata.kernels.dequant.packed_int4 import dequantize_packed
from strata.kernels.dequant.parts import PackedParts

READABLE_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
    "dense",
)
PACKED_PARTS = {"packed": ".weight_packed", "scale": ".weight_scale", "shape": ".weight_shape"}
PACKED_OPTIONS = {"zero_point": ".weight_zero_point", "g_idx": ".weight_g_idx"}


@dataclass(frozen=True, kw_only=True)
class WeightScheme:
    """What a config group says of its weights; `block` is the weights [rows, columns] that share a scale.

    An axis of None is the whole of it: a scale a channel is (1, None), a scale a tensor (None, None).
    """

    bits: int
    block: tuple[int | None, int | None]

    def scale_shape(self, num_rows: int, num_columns: int) -> tuple[int, int]:
        """[blocks of rows, blocks of columns] of a matrix."""
        rows, columns = self.block
        return (ceil(num_rows / (rows or num_rows)), ceil(num_columns / (columns or num_columns)))


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeight(StoredWeight):
    """weight[n, k] = scale[n, g] * (code[n, k] - zero_point[n, g])."""

    format_name = "pack-quantized"
    host_roles = frozenset({"g_idx"})

    bits: int
    group_size: int

    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """In float32, rounded once.

        Raises:
            InputError: g_idx names a group that has no scales.
        """
        g_idx = tensors.get("g_idx")
        if g_idx is not None and bool((g_idx < 0).all()):
            # Never set: groups lie one after another.
            g_idx = None
        stored = PackedParts(
            packed=tensors["packed"],
            scale=tensors["scale"],
            zero_point=tensors.get("zero_point"),
            g_idx=g_idx,
            bits=self.bits,
            group_size=self.group_size,
        )
        try:
            return dequantize_packed(stored, out)
        except ValueError as error:
            raise InputError(f"{self.file}: {self.name} cannot be decoded: {error}") from None


def collect(
    settings: Mapping[str, Any], stored: Mapping[str, StoredTensor], read: ReadSmall
) -> list[StoredWeight]:
    """Every compressed weight.

    Raises:
        InputError: a format, strategy or number of bits that is not readable, a missing part, or one of
            another shape or dtype.
    """
    groups = [group for group in (settings.get("config_groups") or {}).values() if group.get("weights")]
    _check_formats(settings, groups)
    schemes = [_scheme(group["weights"]) for group in groups]
    codes = [name.removesuffix(".weight") for name, tensor in stored.items() if _looks_quantized(tensor)]
    modules = dict.fromkeys([*modules_with(stored, [".weight_packed", ".weight_scale"]), *codes])
    return [_weight(module, stored, schemes, read) for module in modules]


def _check_formats(settings: Mapping[str, Any], groups: Iterable[Mapping[str, Any]]) -> None:
    for owner in (settings, *groups):
        found = owner.get("format") or "dense"
        if found not in READABLE_FORMATS:
            raise InputError(
                f"quantization_config: format is {found!r}; expected one of {', '.join(READABLE_FORMATS)}"
            )
    sparsity = (settings.get("sparsity_config") or {}).get("format") or "dense"
    if sparsity != "dense":
        raise InputError(f"quantization_config: sparsity_config's format is {sparsity!r}; expected 'dense'")
    if (settings.get("transform_config") or {}).get("config_groups"):
        raise InputError("quantization_config: transform_config holds transforms; expected none")


def _scheme(weights: Mapping[str, Any]) -> WeightScheme:
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "tensor")
    bits, group_size = weights.get("num_bits", 8), weights.get("group_size")
    readable = {"int": (4, 8), "float": (8,)}.get(weights.get("type") or "int", ())
    if bits not in readable:
        raise InputError(
            f"quantization_config: weights of type {weights.get('type')} in {bits} bits; "
            "expected int in 4 or 8, or float in 8"
        )
    blocks = {
        "tensor": (None, None),
        "channel": (1, None),
        "group": (1, None if group_size == -1 else group_size),
        "block": tuple(weights.get("block_structure") or ()),
    }
    block = blocks.get(strategy)
    if block is None or len(block) != 2 or not all(size is None or _is_positive(size) for size in block):
        raise InputError(
            f"quantization_config: strategy {strategy!r} with group_size {group_size} and block_structure "
            f"{weights.get('block_structure')}; expected tensor, channel, group or block and its sizes"
        )
    return WeightScheme(bits=bits, block=(block[0], block[1]))


def _is_positive(size: object) -> bool:
    return isinstance(size, int) and size > 0


def _looks_quantized(tensor: StoredTensor) -> bool:
    return tensor.name.endswith(".weight") and tensor.dtype in ("I8", "F8_E4M3", "F8_E5M2")


def _weight(
    module: str, stored: Mapping[str, StoredTensor], schemes: list[WeightScheme], read: ReadSmall
) -> StoredWeight:
    if not schemes:
        raise InputError(
            f"quantization_config: no config_groups with weights, although {module} is stored quantised"
        )
    if module + ".weight_packed" in stored or module + ".weight_shape" in stored:
        return _packed_weight(module, stored, schemes, read)
    parts = take_parts(stored, module, {"codes": ".weight", "scale": ".weight_scale"})
    codes = parts["codes"]
    expect_dtype(codes, "I8", "F8_E4M3")
    expect_matrix(codes)
    if codes.dtype == "I8":
        return _int8_weight(module, stored, parts)
    return fp8_weight(module + ".weight", parts, _fp8_block(parts, schemes))


def _int8_weight(
    module: str, stored: Mapping[str, StoredTensor], parts: Mapping[str, StoredTensor]
) -> StoredWeight:
    codes, scale = parts["codes"], parts["scale"]
    expect_dtype(scale, *SCALE_DTYPES)
    if scale.shape not in ((), (1,), (1, 1), codes.shape[:1]):
        expect_shape(scale, (codes.shape[0], 1))
    if zero_point := stored.get(module + ".weight_zero_point"):
        raise InputError(
            f"{zero_point.file}: tensor {zero_point.name}: int8 weights with zero points are not readable; "
            "expected symmetric ones"
        )
    return ChannelInt8Weight(name=module + ".weight", shape=codes.shape, parts=parts)


def _fp8_block(parts: Mapping[str, StoredTensor], schemes: list[WeightScheme]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, by the scheme that the stored scale fits; None for coarser."""
    rows, columns = parts["codes"].shape
    blocks = [(scheme.block, scheme.scale_shape(rows, columns)) for scheme in schemes]
    fitting = [block for block, shape in blocks if shape == parts["scale"].shape] or [
        block for block, _ in blocks
    ]
    height, width = fitting[0]
    return None if height is None or width is None else (height, width)


def _packed_weight(
    module: str, stored: Mapping[str, StoredTensor], schemes: list[WeightScheme], read: ReadSmall
) -> PackedWeight:
    parts = take_parts(stored, module, PACKED_PARTS, PACKED_OPTIONS)
    shape = _read_shape(parts.pop("shape"), read)
    expect_dtype(parts["packed"], "I32")
    expect_dtype(parts["scale"], *SCALE_DTYPES)
    for role in PACKED_OPTIONS:
        if role in parts:
            expect_dtype(parts[role], "I32")
    expected = [_packed_shapes(scheme, shape) for scheme in schemes]
    fitting = [number for number, shapes in enumerate(expected) if _fits(parts, shapes)] or [0]
    scheme, shapes = schemes[fitting[0]], expected[fitting[0]]
    for role, part in parts.items():
        expect_shape(part, shapes[role])
    return PackedWeight(
        name=module + ".weight",
        shape=shape,
        parts=parts,
        bits=scheme.bits,
        group_size=scheme.block[1] or shape[1],
    )


def _read_shape(tensor: StoredTensor, read: ReadSmall) -> tuple[int, int]:
    expect_dtype(tensor, "I64", "I32")
    expect_shape(tensor, (2,))
    num_rows, num_columns = read(tensor).tolist()
    return num_rows, num_columns


def _packed_shapes(scheme: WeightScheme, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    codes_per_word = 32 // scheme.bits
    num_rows, num_columns = shape
    num_groups = scheme.scale_shape(*shape)[1]
    return {
        "packed": (num_rows, ceil(num_columns / codes_per_word)),
        "scale": (num_rows, num_groups),
        "zero_point": (ceil(num_rows / codes_per_word), num_groups),
        "g_idx": (num_columns,),
    }


def _fits(parts: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(part.shape == shapes[role] for role, part in parts.items())
