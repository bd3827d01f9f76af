"""Times how fast stored weights become weights to compute with: one random matrix a storage format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from strata.kernels.dequant.four_bit import dequantize_4bit
from strata.kernels.dequant.four_bit_encode import NF4_QUANT_MAP
from strata.kernels.dequant.fp8 import dequantize_fp8_blocks
from strata.kernels.dequant.gguf.dequantize import BLOCK_TYPES, GgufParts, dequantize_gguf
from strata.kernels.dequant.int8 import dequantize_channels
from strata.kernels.dequant.packed_int4 import dequantize_awq, dequantize_gptq, dequantize_packed
from strata.kernels.dequant.parts import FourBitParts, GptqParts, PackedParts
from strata.kernels.int8_linear.quantize import quantize_weight
from strata.scripts.bench.timing import least_seconds

ROWS, COLUMNS = 2048, 5632
NUM_WEIGHTS = ROWS * COLUMNS
BLOCK, GROUP, FP8_BLOCK = 64, 128, (128, 128)
PER_WORD = 8


def measure_decode_rates(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Weights a second by step, into a compute dtype; see MachineRates.decode_weights_per_s."""
    return {
        step: NUM_WEIGHTS / least_seconds(decode, device, at_least_s=0.2)
        for step, decode in decode_steps(dtype, device).items()
    }


def decode_steps(dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], object]]:
    """What each step runs, on random codes."""
    out = torch.empty(ROWS, COLUMNS, dtype=dtype, device=device)
    dense = torch.randn(ROWS, COLUMNS, device=device)
    other = dense.to(torch.bfloat16) if dtype == torch.float32 else dense
    codes = torch.randint(-127, 128, (ROWS, COLUMNS), dtype=torch.int8, device=device)
    packed = torch.randint(0, 256, (NUM_WEIGHTS // 2,), dtype=torch.uint8, device=device)
    words = packed.view(torch.int32)
    absmax = torch.rand(NUM_WEIGHTS // BLOCK, device=device)
    groups = COLUMNS // GROUP
    scales = torch.rand(groups, ROWS, device=device)
    zeros = torch.randint(0, 2**20, (groups, ROWS // PER_WORD), dtype=torch.int32, device=device)
    int8_out = (torch.empty_like(codes), torch.empty(ROWS, device=device))
    fp8 = dense.to(torch.float8_e4m3fn)
    fp8_scale = torch.rand(ROWS // FP8_BLOCK[0], COLUMNS // FP8_BLOCK[1], device=device)
    four_bit = FourBitParts(packed=packed, absmax=absmax, quant_map=NF4_QUANT_MAP.to(device), blocksize=BLOCK)
    by_column = words.view(COLUMNS // PER_WORD, ROWS)
    gptq = GptqParts(qweight=by_column, qzeros=zeros, scales=scales, group_size=GROUP, zero_offset=1)
    by_row = PackedParts(packed=words.view(ROWS, COLUMNS // PER_WORD), scale=scales.t().contiguous())
    return {
        "plain": lambda: out.copy_(other),
        "int8": lambda: dequantize_channels(codes, absmax[:ROWS], out),
        "nf4": lambda: dequantize_4bit(four_bit, out),
        "fp4": lambda: dequantize_4bit(four_bit, out),
        "gptq": lambda: dequantize_gptq(gptq, out),
        "awq": lambda: dequantize_awq(words.view(COLUMNS, ROWS // PER_WORD), zeros, scales, GROUP, out),
        "pack-quantized": lambda: dequantize_packed(by_row, out),
        "fp8": lambda: dequantize_fp8_blocks(fp8, fp8_scale, FP8_BLOCK, out),
        "quantize": lambda: quantize_weight(out, out=int8_out),
        **{name.lower(): partial(dequantize_gguf, _random_blocks(name, device), out) for name in BLOCK_TYPES},
    }


def _random_blocks(type_name: str, device: torch.device) -> GgufParts:
    row_bytes = BLOCK_TYPES[type_name].row_bytes(COLUMNS)
    packed = torch.randint(0, 256, (ROWS, row_bytes), dtype=torch.uint8, device=device)
    return GgufParts(packed=packed, type_name=type_name)
