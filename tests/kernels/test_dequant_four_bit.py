"""NF4 and FP4: decoders against the oracle bit for bit, both directions against bitsandbytes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from strata.kernels.dequant import blocks
from strata.kernels.dequant.four_bit import dequantize_4bit, dequantize_absmax
from strata.kernels.dequant.four_bit_encode import (
    NF4_QUANT_MAP,
    build_dynamic_map,
    quantize_absmax,
    quantize_nf4,
)
from strata.kernels.dequant.parts import FourBitParts
from strata.kernels.dequant.reference import reference_4bit

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
SHAPES = ((1, 1), (3, 7), (5, 64), (33, 100))


@pytest.fixture(autouse=True, params=["several blocks", "one block"])
def block_size_on_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks make small weights take several, the last one partial."""
    torch.manual_seed(0)
    if request.param == "several blocks":
        monkeypatch.setattr(blocks, "CACHED_ELEMENTS", 256)
        monkeypatch.setattr(blocks, "SERIAL_ELEMENTS", 256)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def poisoned(shape: tuple[int, int], dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def nf4_parts(packed: torch.Tensor, absmax: torch.Tensor) -> FourBitParts:
    """An NF4 weight in blocks of 64."""
    return FourBitParts(packed=packed, absmax=absmax, quant_map=NF4_QUANT_MAP, blocksize=64)


def random_parts(shape: tuple[int, int], blocksize: int = 64) -> FourBitParts:
    """Random bytes and block scales for an NF4 weight [N, K]."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    packed = torch.randint(0, 256, (-(-math.prod(shape) // 2), 1), generator=generator, dtype=torch.uint8)
    absmax = torch.rand(-(-math.prod(shape) // blocksize), generator=generator)
    return replace(nf4_parts(packed, absmax), blocksize=blocksize)


def on_device(stored: FourBitParts, device: str) -> FourBitParts:
    tensors = {name: getattr(stored, name).to(device) for name in ("packed", "absmax", "quant_map")}
    return replace(stored, **tensors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("blocksize", [32, 64, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decoder_is_the_oracle(
    shape: tuple[int, int], blocksize: int, dtype: torch.dtype, device: str
) -> None:
    stored = replace(random_parts(shape, blocksize), quant_map=torch.randn(16))
    out = poisoned(shape, dtype, device)
    assert dequantize_4bit(on_device(stored, device), out) is out
    exact = reference_4bit(stored.packed, stored.absmax, stored.quant_map, blocksize, shape)
    assert torch.equal(out.cpu(), exact.float().to(dtype))


def test_high_half_of_a_byte_comes_first() -> None:
    stored = FourBitParts(
        packed=torch.tensor([0x0F, 0x73], dtype=torch.uint8),
        absmax=torch.tensor([2.0, 10.0]),
        quant_map=torch.arange(16.0),
        blocksize=2,
    )
    out = dequantize_4bit(stored, poisoned((2, 2), torch.float32))
    assert out.tolist() == [[0.0, 30.0], [70.0, 30.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize(("shape", "blocksize"), [((48, 100), 64), ((48, 100), 128), ((7, 9), 64)], ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_decodes_what_bitsandbytes_encodes(
    dtype: torch.dtype, quant_type: str, shape: tuple[int, int], blocksize: int, nested: bool
) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(shape).to(dtype)
    packed, state = functional.quantize_4bit(
        weight, blocksize=blocksize, quant_type=quant_type, compress_statistics=nested
    )
    absmax = state.absmax
    if nested:
        offset = json.loads(json.dumps(state.offset.item()))
        absmax = dequantize_absmax(
            absmax, state.state2.code, state.state2.absmax, state.state2.blocksize, offset
        )
        expected = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        assert torch.equal(absmax, expected)
    stored = FourBitParts(packed=packed, absmax=absmax, quant_map=state.code, blocksize=blocksize)
    out = dequantize_4bit(stored, poisoned(shape, dtype))
    if shape[1] % 2 == 0:
        assert torch.equal(out, functional.dequantize_4bit(packed, state))
    else:
        # For an odd row length their CPU kernel compiles, with FP4's values to four decimals only (0.0052 for
        # 1 / 192): the definition decides.
        exact = reference_4bit(packed, absmax, state.code, blocksize, shape)
        assert torch.equal(out, exact.float().to(dtype))
    worst = {"nf4": 0.16, "fp4": 0.18}[quant_type]
    assert (out.float() - weight.float()).abs().max() <= worst * absmax.max() * 1.02


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (33, 100), (7, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("blocksize", [32, 64])
def test_encoder_is_that_of_bitsandbytes(dtype: torch.dtype, shape: tuple[int, int], blocksize: int) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(shape).to(dtype)
    weight.view(-1)[:40] = 0
    packed, absmax = quantize_nf4(weight, blocksize)
    theirs, state = functional.quantize_4bit(weight, blocksize=blocksize, quant_type="nf4")
    assert torch.equal(packed, theirs)
    assert torch.equal(absmax, state.absmax)


def test_encoder_takes_the_nearest_code() -> None:
    weight = torch.randn(9, 33, dtype=torch.float64).float()
    packed, absmax = quantize_nf4(weight, 64)
    assert packed.shape == (-(-weight.numel() // 2), 1)
    out = dequantize_4bit(nf4_parts(packed, absmax), poisoned((9, 33), torch.float32))
    scale = absmax.repeat_interleave(64)[: weight.numel(), None]
    assert torch.equal(absmax, torch.stack([part.abs().max() for part in weight.view(-1).split(64)]))
    nearest = (weight.view(-1, 1) - scale * NF4_QUANT_MAP).abs().amin(dim=1)
    torch.testing.assert_close((out - weight).abs().view(-1), nearest, rtol=0, atol=1e-6)


def test_a_weight_encoded_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(33, 99)
    whole = quantize_nf4(weight)
    monkeypatch.setattr("strata.kernels.dequant.four_bit_encode.block_elements", lambda device: 192)
    parts = quantize_nf4(weight)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


@pytest.mark.parametrize("num_blocks", [1, 255, 256, 1000])
def test_nested_scales_take_the_nearest_code(num_blocks: int) -> None:
    absmax = torch.rand(num_blocks) + 0.5
    codes, quant_map, nested_absmax, offset = quantize_absmax(absmax)
    assert codes.dtype == torch.uint8
    assert nested_absmax.shape == (-(-num_blocks // 256),)
    assert offset == absmax.mean().item()
    decoded = dequantize_absmax(codes, quant_map, nested_absmax, 256, offset)
    scale = nested_absmax.repeat_interleave(256)[:num_blocks, None]
    nearest = (absmax[:, None] - offset - scale * quant_map).abs().amin(dim=1)
    torch.testing.assert_close((decoded - absmax).abs(), nearest, rtol=0, atol=1e-6)


def test_nested_scales_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(128, 1000)
    _, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    _, absmax = quantize_nf4(weight)
    codes, quant_map, nested_absmax, offset = quantize_absmax(absmax)
    assert offset == state.offset.item()
    assert torch.equal(quant_map, state.state2.code)
    assert torch.equal(nested_absmax, state.state2.absmax)
    # Their CPU kernel finds a code by a table of 2^16 cells: next to ours at most, and no nearer.
    scaled = (absmax - offset) / nested_absmax.repeat_interleave(256)[: absmax.numel()]
    ours, theirs = (scaled - quant_map[c.int()] for c in (codes, state.absmax))
    assert (codes.int() - state.absmax.int()).abs().max() <= 1
    assert (codes != state.absmax).float().mean() < 0.02
    assert (theirs.abs() - ours.abs()).min() >= -1e-7
    assert (theirs.abs() - ours.abs()).max() <= 2**-15


def test_bitsandbytes_decodes_what_we_encode() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(96, 128)
    packed, absmax = quantize_nf4(weight)
    codes, quant_map, nested_absmax, offset = quantize_absmax(absmax)
    nested = functional.QuantState(absmax=nested_absmax, code=quant_map, blocksize=256, dtype=torch.float32)
    state = functional.QuantState(
        absmax=codes, shape=weight.shape, code=NF4_QUANT_MAP, blocksize=64, quant_type="nf4",
        dtype=torch.bfloat16, offset=torch.tensor(offset), state2=nested,
    )  # fmt: skip
    scales = dequantize_absmax(codes, quant_map, nested_absmax, 256, offset)
    ours = dequantize_4bit(nf4_parts(packed, scales), poisoned((96, 128), torch.bfloat16))
    assert torch.equal(ours, functional.dequantize_4bit(packed, state))
    assert (ours.float() - weight).abs().max() < 0.2 * absmax.max()


def test_the_dynamic_map_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    assert torch.equal(build_dynamic_map(), functional.create_dynamic_map())
    assert torch.equal(NF4_QUANT_MAP, functional.get_4bit_type("nf4", device="cpu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [192, 1 << 21])
def test_the_bitsandbytes_backend_gives_the_same(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("strata.kernels.dequant.four_bit.BITSANDBYTES_CHUNK", chunk)
    stored = on_device(random_parts((33, 100)), device)
    ours = dequantize_4bit(stored, poisoned((33, 100), dtype, device))
    theirs = poisoned((33, 100), dtype, device)
    assert dequantize_4bit(stored, theirs, backend="bitsandbytes") is theirs
    assert torch.equal(ours, theirs)


def test_wrong_inputs_are_refused() -> None:
    stored, out = random_parts((4, 64)), torch.empty(4, 64)
    with pytest.raises(ValueError, match=r"packed \(flattened\) has shape \[127\], expected \[128\]"):
        dequantize_4bit(replace(stored, packed=stored.packed[1:]), out)
    with pytest.raises(ValueError, match=r"absmax has shape \[4\], expected \[8\]"):
        dequantize_4bit(replace(stored, blocksize=32), out)
    with pytest.raises(ValueError, match=r"packed is torch.int8, expected torch.uint8"):
        dequantize_4bit(replace(stored, packed=stored.packed.view(torch.int8)), out)
    with pytest.raises(ValueError, match="blocksize is 63"):
        dequantize_4bit(replace(stored, blocksize=63), out)
    with pytest.raises(ValueError, match="backend is 'cuda'"):
        dequantize_4bit(stored, out, backend="cuda")
    with pytest.raises(ValueError, match=r"weight is torch.float64"):
        quantize_nf4(out.double())


def test_the_bitsandbytes_backend_refuses_what_it_would_round_or_compile() -> None:
    pytest.importorskip("bitsandbytes")
    other_map = replace(random_parts((4, 64)), quant_map=torch.arange(16.0))
    with pytest.raises(ValueError, match="NF4's quant_map"):
        dequantize_4bit(other_map, torch.empty(4, 64), backend="bitsandbytes")
    with pytest.raises(ValueError, match="got 21 weights"):
        dequantize_4bit(random_parts((3, 7)), torch.empty(3, 7), backend="bitsandbytes")
