"""Decoders in Triton's interpreter give the bits of the decoders in torch, in float32 and rounded to float16.

The interpreter cuts float32 off to bfloat16 where a card rounds, so that dtype is left out.
"""

from __future__ import annotations

import pytest
import torch

from strata.kernels.dequant import fp8, packed_int4
from strata.kernels.dequant.four_bit import (
    NF4_QUANT_MAP,
    build_dynamic_map,
    dequantize_4bit,
    dequantize_absmax,
)
from strata.kernels.dequant.gguf.dequantize import BLOCK_TYPES, ONE_LAUNCH, GgufParts, dequantize_gguf
from strata.kernels.dequant.gguf.triton_kernels import launch_gguf
from strata.kernels.dequant.packed_int4 import dequantize_awq, dequantize_gptq, dequantize_packed
from strata.kernels.dequant.parts import FourBitParts, GptqParts, PackedParts
from strata.kernels.dequant.triton_kernels import launch_absmax, launch_four_bit, launch_fp8, launch_packed

DTYPES = (torch.float32, torch.float16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, generator=generator(sum(shape)), dtype=torch.int32)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (26, 100), (33, 128)], ids=str)
@pytest.mark.parametrize("blocksize", [32, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_four_bit(shape: tuple[int, int], blocksize: int, dtype: torch.dtype) -> None:
    count = shape[0] * shape[1]
    stored = FourBitParts(
        packed=torch.randint(0, 256, (-(-count // 2), 1), generator=generator(), dtype=torch.uint8),
        absmax=torch.rand(-(-count // blocksize), generator=generator()),
        quant_map=NF4_QUANT_MAP,
        blocksize=blocksize,
    )
    found, expected = poisoned(*shape, dtype=dtype), poisoned(*shape, dtype=dtype)
    launch_four_bit(stored, found)
    assert torch.equal(found, dequantize_4bit(stored, expected))


@pytest.mark.parametrize("num_blocks", [1, 257, 1500])
def test_nested_scales(num_blocks: int) -> None:
    codes = torch.randint(0, 256, (num_blocks,), generator=generator(), dtype=torch.uint8)
    nested = torch.rand(-(-num_blocks // 256), generator=generator())
    found = poisoned(num_blocks, dtype=torch.float32)
    launch_absmax(codes, build_dynamic_map(), nested, 256, 0.1234567, found)
    assert torch.equal(found, dequantize_absmax(codes, build_dynamic_map(), nested, 256, 0.1234567))


@pytest.mark.parametrize("shape", [(1, 1), (26, 100), (5, 1030)], ids=str)
@pytest.mark.parametrize("block", [(128, 128), (3, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fp8(shape: tuple[int, int], block: tuple[int, int], dtype: torch.dtype) -> None:
    """Every one of the 256 codes occurs in the larger shapes, NaN, subnormals and both zeros among them."""
    count = shape[0] * shape[1]
    codes = (torch.arange(count) % 256).to(torch.uint8).view(shape).view(torch.float8_e4m3fn)
    scale = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]), generator=generator())
    found, expected = poisoned(*shape, dtype=dtype), poisoned(*shape, dtype=dtype)
    launch_fp8(codes, scale, *block, found)
    fp8.dequantize_fp8_blocks(codes, scale, block, expected)
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(found.isnan(), codes.float().isnan())


class _Launched:
    """Sends decoders of words to the interpreter, as a card would be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packed_int4, "has_kernels", lambda device: True)
        monkeypatch.setattr(packed_int4, "decode_packed", launch_packed)


def assert_same_launched(decode, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    for dtype in DTYPES:
        expected = decode(poisoned(*shape, dtype=dtype))
        with monkeypatch.context() as patched:
            _Launched(patched)
            assert torch.equal(decode(poisoned(*shape, dtype=dtype)), expected)
            patched.setattr(packed_int4, "decode_packed", torch.ops.strata.decode_packed)
            assert torch.equal(decode(poisoned(*shape, dtype=dtype)), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("group_size", "act_order", "zero_offset"), [(32, False, 1), (32, True, 0), (-1, False, 1)]
)
def test_gptq(bits: int, group_size: int, act_order: bool, zero_offset: int, monkeypatch) -> None:
    num_rows, num_columns, fields = 48, 96, 32 // bits
    groups = 1 if group_size == -1 else num_columns // group_size
    stored = GptqParts(
        qweight=words(num_columns // fields, num_rows),
        qzeros=words(groups, num_rows // fields),
        scales=torch.rand(groups, num_rows, generator=generator()).half(),
        group_size=group_size,
        zero_offset=zero_offset,
        g_idx=torch.randint(0, groups, (num_columns,), generator=generator()) if act_order else None,
        bits=bits,
    )
    assert_same_launched(lambda out: dequantize_gptq(stored, out), monkeypatch, (num_rows, num_columns))


@pytest.mark.parametrize("group_size", [32, -1])
def test_awq(group_size: int, monkeypatch) -> None:
    groups = 1 if group_size == -1 else 3
    parts = words(96, 5), words(groups, 5), torch.rand(groups, 40, generator=generator()).half()
    assert_same_launched(lambda out: dequantize_awq(*parts, group_size, out), monkeypatch, (40, 96))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized(bits: int, symmetric: bool, monkeypatch) -> None:
    """26 rows fill no whole number of words of zero points."""
    fields = 32 // bits
    stored = PackedParts(
        packed=words(26, 96 // fields),
        scale=torch.rand(26, 3, generator=generator()),
        zero_point=None if symmetric else words(-(-26 // fields), 3),
        bits=bits,
        group_size=32,
    )
    assert_same_launched(lambda out: dequantize_packed(stored, out), monkeypatch, (26, 96))


@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("type_name", sorted(ONE_LAUNCH))
def test_gguf(type_name: str, reordered: bool) -> None:
    kind = BLOCK_TYPES[type_name]
    num_rows, num_columns = 5, 3 * 256
    packed = torch.randint(
        0, 256, (num_rows, kind.row_bytes(num_columns)), generator=generator(), dtype=torch.uint8
    )
    blocks = packed.view(-1, kind.num_bytes)
    halves = (208, 209) if type_name == "Q6_K" else (0, 1, 2, 3)
    for at in halves[1::2]:
        blocks[:, at] &= 0x3F  # no infinities and NaNs among the scales; signs are the codes'
        if type_name in ("Q4_0", "Q5_0", "Q8_0"):
            break
    order = torch.tensor([3, 0, 4, 1, 2]) if reordered else None
    for dtype, offset in ((torch.float32, 0.0), (torch.float32, 1.0), (torch.float16, 0.0)):
        stored = GgufParts(packed=packed, type_name=type_name, row_order=order, offset=offset)
        found = poisoned(num_rows, num_columns, dtype=dtype)
        launch_gguf(packed, order, type_name, (kind.weights, kind.num_bytes), offset, found)
        expected = dequantize_gguf(stored, poisoned(num_rows, num_columns, dtype=dtype))
        assert not expected.isnan().any()
        assert torch.equal(found, expected)
