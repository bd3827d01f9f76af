"""Every storage format as its definition says it lies on disk: random codes, packed, and what they mean.

Independent of kernels/dequant: a packer draws integers and scales, computes the weight in the plainest way,
and writes the integers word by word. Scales have few bits, so that the float32 weights are exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from .words import Layout, Packed, draw, draw_scales, float_codes, pack_words, spread_blocks, spread_groups

GROUP = 16
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output channel, of eight, that each nibble of a word holds, lowest nibble first."""


def gptq(
    *, bits: int = 4, group_size: int = GROUP, version: str = "gptq", desc_act: bool = False, **extra: object
) -> Layout:
    """AutoGPTQ's and GPTQModel's layout."""

    def pack(shape: tuple[int, int], generator: torch.Generator) -> Packed:
        num_rows, num_columns = shape
        size = num_columns if group_size == -1 else group_size
        g_idx = torch.arange(num_columns) // size
        if desc_act:
            g_idx = g_idx[torch.randperm(num_columns, generator=generator)]
        codes = draw(generator, 0, 2**bits, num_rows, num_columns)
        zeros = draw(generator, 1, 2**bits, num_rows, num_columns // size)
        scales = draw_scales(generator, bits, num_rows, num_columns // size)
        stored_zeros = zeros - {"gptq": 1, "gptq_v2": 0}[version]
        tensors = {
            ".qweight": pack_words(codes, bits).t().contiguous(),
            ".qzeros": pack_words(stored_zeros.t(), bits),
            ".scales": scales.t().half().contiguous(),
            ".g_idx": g_idx.int(),
        }
        return tensors, (codes - spread_groups(zeros, g_idx)) * spread_groups(scales, g_idx)

    settings = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": desc_act}
    return Layout(settings=settings | {"sym": False, "checkpoint_format": version} | extra, pack=pack)


def awq(*, group_size: int = GROUP, **extra: object) -> Layout:
    """AutoAWQ's GEMM layout."""

    def pack(shape: tuple[int, int], generator: torch.Generator) -> Packed:
        num_rows, num_columns = shape
        size = num_columns if group_size == -1 else group_size
        groups = torch.arange(num_columns) // size
        codes = draw(generator, 0, 16, num_rows, num_columns)
        zeros = draw(generator, 0, 16, num_rows, num_columns // size)
        scales = draw_scales(generator, 4, num_rows, num_columns // size)
        tensors = {
            ".qweight": pack_words(_in_awq_order(codes.t()), 4),
            ".qzeros": pack_words(_in_awq_order(zeros.t()), 4),
            ".scales": scales.t().half().contiguous(),
        }
        return tensors, (codes - spread_groups(zeros, groups)) * spread_groups(scales, groups)

    settings = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm"}
    return Layout(settings=settings | {"zero_point": True} | extra, pack=pack)


def _in_awq_order(codes: Tensor) -> Tensor:
    return codes.unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1)


def bitsandbytes_4bit(*, kind: str = "nf4", nested: bool = False, **extra: object) -> Layout:
    """transformers' four-bit layout; the tables of values are none of bitsandbytes', as they are on disk."""

    def pack(shape: tuple[int, int], generator: torch.Generator) -> Packed:
        num_weights, blocksize = shape[0] * shape[1], 64
        codes = draw(generator, 0, 16, num_weights)
        quant_map = torch.arange(-7.0, 9.0) / 8
        state = {"quant_type": kind, "blocksize": blocksize, "dtype": "float32", "shape": list(shape)}
        tensors = {".weight": (codes[0::2] * 16 + codes[1::2]).to(torch.uint8)[:, None]}
        tensors[".weight.quant_map"] = quant_map
        num_blocks = num_weights // blocksize
        if nested:
            absmax = draw(generator, 0, 256, num_blocks)
            nested_map, nested_absmax = torch.arange(256) / 256, torch.full([-(-num_blocks // 8)], 0.25)
            nested_absmax[0] = 0.5
            tensors |= {".weight.absmax": absmax.to(torch.uint8)}
            tensors |= {".weight.nested_absmax": nested_absmax, ".weight.nested_quant_map": nested_map}
            state |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": 0.125}
            scales = nested_map[absmax] * nested_absmax.repeat_interleave(8)[:num_blocks] + 0.125
        else:
            scales = tensors[".weight.absmax"] = draw_scales(generator, 1, num_blocks)
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        tensors[f".weight.quant_state.bitsandbytes__{kind}"] = text
        return tensors, (quant_map[codes] * scales.repeat_interleave(blocksize)).view(shape)

    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return Layout(settings=settings | extra, pack=pack)


def bitsandbytes_8bit() -> Layout:
    """transformers' eight-bit layout."""

    def pack(shape: tuple[int, int], generator: torch.Generator) -> Packed:
        codes = draw(generator, -127, 128, *shape)
        largest = draw_scales(generator, 1, shape[0])
        tensors = {".weight": codes.to(torch.int8), ".SCB": largest}
        tensors[".weight_format"] = torch.tensor(0, dtype=torch.uint8)
        return tensors, (codes.double() * largest[:, None].double() / 127).float()

    return Layout(settings={"quant_method": "bitsandbytes", "load_in_8bit": True}, pack=pack)


def compressed_settings(weights: dict, storage: str, **extra: object) -> dict:
    """`quantization_config` of one group of weights."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    settings = {"quant_method": "compressed-tensors", "format": storage, "config_groups": {"group_0": group}}
    return settings | {"quantization_status": "compressed", "ignore": ["lm_head"]} | extra


def packed(
    *,
    bits: int = 4,
    group_size: int = GROUP,
    symmetric: bool = True,
    act_order: bool = False,
    **extra: object,
) -> Layout:
    """compressed-tensors' pack-quantized layout; group_size -1 is a scale a channel."""

    def pack(shape: tuple[int, int], generator: torch.Generator) -> Packed:
        num_rows, num_columns = shape
        half, size = 2 ** (bits - 1), num_columns if group_size == -1 else group_size
        g_idx = torch.arange(num_columns) // size
        if act_order:
            g_idx = g_idx[torch.randperm(num_columns, generator=generator)]
        codes = draw(generator, -half, half, num_rows, num_columns)
        zeros = draw(generator, -half, half, num_rows, num_columns // size) * (not symmetric)
        scales = draw_scales(generator, bits, num_rows, num_columns // size)
        tensors = {
            ".weight_packed": pack_words(codes + half, bits),
            ".weight_scale": scales.bfloat16(),
            ".weight_shape": torch.tensor(shape),
        }
        if not symmetric:
            tensors[".weight_zero_point"] = pack_words((zeros + half).t(), bits).t().contiguous()
        if act_order:
            tensors[".weight_g_idx"] = g_idx.int()
        return tensors, (codes - spread_groups(zeros, g_idx)) * spread_groups(scales, g_idx)

    strategy = (
        {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    )
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric} | strategy
    return Layout(settings=compressed_settings(weights, "pack-quantized", **extra), pack=pack)


def int_quantized(*, strategy: str = "channel", **extra: object) -> Layout:
    """compressed-tensors' int-quantized layout, with a scale a channel or a tensor."""

    def pack(shape: tuple[int, int], generator: torch.Generator) -> Packed:
        codes = draw(generator, -128, 128, *shape)
        scales = draw_scales(generator, 8, *((shape[0], 1) if strategy == "channel" else (1,)))
        return {".weight": codes.to(torch.int8), ".weight_scale": scales.bfloat16()}, codes * scales

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy}
    return Layout(settings=compressed_settings(weights, "int-quantized", **extra), pack=pack)


def fp8(settings: dict, suffix: str, block_of: Callable[[tuple[int, int]], tuple[int, int]]) -> Layout:
    """float8 codes with a scale a block, whose size may depend on the weight's shape."""

    def pack(shape: tuple[int, int], generator: torch.Generator) -> Packed:
        block, codes = block_of(shape), float_codes(shape, generator)
        scales = draw_scales(generator, 6, -(-shape[0] // block[0]), -(-shape[1] // block[1]))
        tensors = {".weight": codes, suffix: scales, ".input_scale": torch.ones(1)}
        return tensors, codes.float() * spread_blocks(scales, block, shape)

    return Layout(settings=settings, pack=pack)


BLOCK = (24, 16)
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
LAYOUTS: dict[str, Layout] = {
    "bitsandbytes-nf4": bitsandbytes_4bit(),
    "bitsandbytes-fp4-nested": bitsandbytes_4bit(kind="fp4", nested=True),
    "bitsandbytes-8bit": bitsandbytes_8bit(),
    "gptq": gptq(),
    "gptq-8bit-v2": gptq(bits=8, version="gptq_v2"),
    "gptq-act-order": gptq(desc_act=True),
    "gptq-2bit-one-group": gptq(bits=2, group_size=-1),
    "awq": awq(),
    "awq-one-group": awq(group_size=-1),
    "packed": packed(),
    "packed-asymmetric": packed(symmetric=False),
    "packed-8bit-channel": packed(bits=8, group_size=-1),
    "packed-act-order": packed(act_order=True),
    "int8-channel": int_quantized(),
    "int8-tensor": int_quantized(strategy="tensor"),
    "float-channel": fp8(
        compressed_settings(FP8 | {"strategy": "channel"}, "float-quantized"),
        ".weight_scale",
        lambda shape: (1, shape[1]),
    ),
    "float-tensor": fp8(
        compressed_settings(FP8 | {"strategy": "tensor"}, "float-quantized"),
        ".weight_scale",
        lambda shape: shape,
    ),
    "float-block": fp8(
        compressed_settings(FP8 | {"strategy": "block", "block_structure": list(BLOCK)}, "float-quantized"),
        ".weight_scale",
        lambda shape: BLOCK,
    ),
    "fp8-block": fp8(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)},
        ".weight_scale_inv",
        lambda shape: BLOCK,
    ),
    "fbgemm-fp8": fp8({"quant_method": "fbgemm_fp8"}, ".weight_scale", lambda shape: (1, shape[1])),
}
"""By the name the tests show."""
