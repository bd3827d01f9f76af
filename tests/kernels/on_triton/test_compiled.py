"""Every Triton kernel compiles for sm75, sm80 and sm90 without a card, and spills no register."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton has wheels for Linux alone")

from strata.kernels.dequant import triton_kernels as dequant
from strata.kernels.dequant.gguf import triton_kernels as gguf
from strata.kernels.dequant.gguf.dequantize import BLOCK_TYPES, ONE_LAUNCH
from strata.kernels.dequant.parts import FourBitParts
from strata.kernels.elementwise import triton_kernels as elementwise
from strata.kernels.prefix_attention import triton_kernels as attention_parts
from strata.kernels.triton_support import probe

from .compiling import CAPABILITIES, Compiled, compile_launch

CARDS = ((75, torch.float16), (75, torch.float32), (80, torch.bfloat16), (90, torch.bfloat16))
"""A T4 has no bfloat16."""
MOST_REGISTERS = 128
"""With these a multiprocessor holds 512 threads, which is enough to hide the latency of memory."""


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def norm(width: int, rounds_first: bool, has_residual: bool = False) -> Callable[[torch.dtype], object]:
    def launch(dtype: torch.dtype) -> object:
        x, weight = meta(8192, width, dtype=dtype), meta(width, dtype=dtype)
        residual = meta(8192, width, dtype=dtype) if has_residual else None
        return elementwise.launch_rms_norm(x, residual, weight, 1e-6, float(not rounds_first), rounds_first)

    return launch


def rotation(head_dim: int, width: int) -> Callable[[torch.dtype], object]:
    def launch(dtype: torch.dtype) -> object:
        query, key = (meta(1, 8192, heads, head_dim, dtype=dtype).transpose(1, 2) for heads in (64, 8))
        tables = meta(1, 8192, width, dtype=dtype), meta(1, 8192, width, dtype=dtype)
        return elementwise.launch_rotate(query, key, *tables)

    return launch


def gate(activation: str) -> Callable[[torch.dtype], object]:
    def launch(dtype: torch.dtype) -> object:
        return elementwise.launch_gated(
            meta(8192, 28672, dtype=dtype), meta(8192, 28672, dtype=dtype), activation
        )

    return launch


ELEMENTWISE = {
    "norm-llama-8192": norm(8192, rounds_first=True),
    "norm-gemma-3584": norm(3584, rounds_first=False),
    "norm-heads-128": norm(128, rounds_first=True),
    "norm-widest-16384": norm(16384, rounds_first=True),
    "norm-residual-8192": norm(8192, rounds_first=True, has_residual=True),
    "norm-residual-16384": norm(16384, rounds_first=False, has_residual=True),
    "rotate-128": rotation(128, 128),
    "rotate-256": rotation(256, 256),
    "rotate-partial-96-of-128": rotation(128, 96),
    "silu": gate("silu"),
    "gelu-tanh": gate("gelu_tanh"),
    "gelu": gate("gelu"),
}


@pytest.mark.parametrize(("capability", "dtype"), CARDS, ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_kernels_do_not_spill(
    name: str,
    capability: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    compiled = compile_launch(lambda: ELEMENTWISE[name](dtype), elementwise, capability, monkeypatch)
    record_property("registers", compiled.registers)
    assert compiled.stack_bytes == 0
    assert compiled.registers <= MOST_REGISTERS


def gather(kv_heads: int, head_dim: int) -> Callable[[torch.dtype], object]:
    def launch(dtype: torch.dtype) -> object:
        index = meta(16_384, dtype=torch.int64)
        return attention_parts.launch_gather_keys(meta(kv_heads, 9000, head_dim, dtype=dtype), index)

    return launch


def merge(num_heads: int, head_dim: int) -> Callable[[torch.dtype], object]:
    def launch(dtype: torch.dtype) -> object:
        sizes = ((8192, num_heads, head_dim), (1350, num_heads, head_dim))
        own, other = (meta(*size, dtype=dtype) for size in sizes)
        lse, other_lse = (meta(num_heads, size[0], dtype=torch.float32) for size in sizes)
        rows = meta(1350, dtype=torch.int64)
        return attention_parts.launch_merge_attention(own, lse, other, other_lse, rows)

    return launch


ATTENTION_PARTS = {
    "gather-8-heads-128": gather(8, 128),
    "gather-32-heads-80": gather(32, 80),
    "merge-64-heads-128": merge(64, 128),
    "merge-32-heads-80": merge(32, 80),
}


@pytest.mark.parametrize(("capability", "dtype"), CARDS, ids=str)
@pytest.mark.parametrize("name", ATTENTION_PARTS)
def test_kernels_around_attention_do_not_spill(
    name: str, capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_launch(lambda: ATTENTION_PARTS[name](dtype), attention_parts, capability, monkeypatch)
    assert compiled.stack_bytes == 0
    assert compiled.registers <= MOST_REGISTERS


OUT = meta(4096, 8192)


def four_bit() -> None:
    parts = FourBitParts(
        packed=meta(OUT.numel() // 2, dtype=torch.uint8),
        absmax=meta(OUT.numel() // 64, dtype=torch.float32),
        quant_map=meta(16, dtype=torch.float32),
        blocksize=64,
    )
    dequant.launch_four_bit(parts, OUT)


def absmax() -> None:
    codes, nested = meta(1 << 19, dtype=torch.uint8), meta(1 << 11, dtype=torch.float32)
    out = meta(1 << 19, dtype=torch.float32)
    dequant.launch_absmax(codes, meta(256, dtype=torch.float32), nested, 256, 0.1, out)


def gptq() -> None:
    words, zeros, scales = (
        meta(1024, 4096, dtype=torch.int32),
        meta(64, 512, dtype=torch.int32),
        meta(64, 4096),
    )
    dequant.launch_packed(words.t(), zeros.t(), scales.t(), None, 4, 128, 0x11111111, False, True, OUT)


def act_order() -> None:
    words, zeros, scales = (
        meta(1024, 4096, dtype=torch.int32),
        meta(64, 512, dtype=torch.int32),
        meta(64, 4096),
    )
    groups = meta(8192, dtype=torch.int32)
    dequant.launch_packed(words.t(), zeros.t(), scales.t(), groups, 4, 128, 0x11111111, False, True, OUT)


def awq() -> None:
    words, zeros, scales = (
        meta(8192, 512, dtype=torch.int32),
        meta(64, 512, dtype=torch.int32),
        meta(64, 4096),
    )
    dequant.launch_packed(words.t(), zeros.t(), scales.t(), None, 4, 128, 0, True, False, OUT)


def pack_quantized() -> None:
    words, scales = meta(4096, 1024, dtype=torch.int32), meta(4096, 64)
    dequant.launch_packed(words, None, scales, None, 4, 128, 0, False, True, OUT)


def fp8() -> None:
    codes = meta(4096, 8192, dtype=torch.float8_e4m3fn)
    dequant.launch_fp8(codes, meta(32, 64, dtype=torch.float32), 128, 128, OUT)


DECODERS = {one.__name__: one for one in (four_bit, absmax, gptq, act_order, awq, pack_quantized, fp8)}


def assert_decodes_in_registers(compiled: Compiled) -> None:
    """And, for the bits of torch, without fused multiply-adds."""
    assert compiled.stack_bytes == 0
    assert compiled.registers <= MOST_REGISTERS
    assert "fma" not in compiled.ptx


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_do_not_spill(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_decodes_in_registers(compile_launch(DECODERS[name], dequant, capability, monkeypatch))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", sorted(ONE_LAUNCH))
def test_gguf_decoders_do_not_spill(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BLOCK_TYPES[name]
    packed = meta(4096, kind.row_bytes(8192), dtype=torch.uint8)

    def launch() -> None:
        gguf.launch_gguf(packed, None, name, (kind.weights, kind.num_bytes), 0.0, OUT)

    assert_decodes_in_registers(compile_launch(launch, gguf, capability, monkeypatch))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_probe_compiles(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = meta(3, dtype=torch.float32)
    assert compile_launch(lambda: probe.launch_add_one(x), probe, capability, monkeypatch).stack_bytes == 0


def test_a_spill_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 65,536 numbers in one warp cannot lie in registers."""
    monkeypatch.setattr(elementwise, "norm_tile", lambda width: (1, 65536, 1))
    launch = ELEMENTWISE["norm-llama-8192"]
    compiled = compile_launch(lambda: launch(torch.float32), elementwise, 80, monkeypatch)
    assert compiled.stack_bytes > 0
