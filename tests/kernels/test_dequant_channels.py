"""int8 and float8 decoders against the oracle, bit for bit, on odd shapes and poisoned outputs."""

from __future__ import annotations

import pytest
import torch

from strata.kernels.dequant import blocks
from strata.kernels.dequant.fp8 import dequantize_fp8_blocks, dequantize_fp8_channels
from strata.kernels.dequant.int8 import dequantize_channels
from strata.kernels.dequant.reference import reference_channels, reference_fp8_blocks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
SHAPES = ((1, 1), (7, 5), (13, 300), (300, 13))


@pytest.fixture(autouse=True, params=["several blocks", "one block"])
def block_size_on_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks make small weights take several, the last one partial, and rows longer than a block."""
    torch.manual_seed(0)
    if request.param == "several blocks":
        monkeypatch.setattr(blocks, "CACHED_ELEMENTS", 256)
        monkeypatch.setattr(blocks, "SERIAL_ELEMENTS", 256)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def poisoned(shape: tuple[int, int], dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Float64 rounded to float32 and then to the dtype, which is what a decoder promises."""
    return exact.float().to(dtype)


def random_float8(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Every code but NaN may appear: subnormals, both zeros, the largest."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 127, shape, generator=generator, dtype=torch.uint8)
    signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) * 128
    return (codes | signs).view(torch.float8_e4m3fn)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale_shape", [(-1,), (-1, 1)], ids=["[N]", "[N, 1]"])
def test_int8_channels(
    shape: tuple[int, int], dtype: torch.dtype, scale_shape: tuple[int, ...], device: str
) -> None:
    codes = torch.randint(-128, 128, shape, dtype=torch.int8)
    scale = (torch.rand(shape[0]) * 0.01).view(scale_shape)
    out = poisoned(shape, dtype, device)
    assert dequantize_channels(codes.to(device), scale.to(device), out) is out
    assert torch.equal(out.cpu(), rounded(reference_channels(codes, scale), dtype))


def test_int8_is_what_bitsandbytes_decodes() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(37, 50).half()
    codes, scb, _ = functional.int8_vectorwise_quant(weight)
    out = dequantize_channels(codes, scb / 127, poisoned((37, 50), torch.float32, "cpu"))
    theirs = functional.int8_vectorwise_dequant(codes, scb)
    # They multiply by a rounded 1 / 127: up to four float32 roundings apart.
    torch.testing.assert_close(out, theirs, rtol=3e-7, atol=0)
    assert (out - weight).abs().max() <= 0.501 * (scb / 127).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float8_decodes_every_code(dtype: torch.dtype, device: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(4, 64)
    out = poisoned((4, 64), dtype, device)
    one = torch.ones(1, device=device)
    dequantize_fp8_channels(codes.view(torch.float8_e4m3fn).to(device), one, out)
    for code, value in zip(codes.flatten().tolist(), out.flatten().tolist(), strict=True):
        sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
        magnitude = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
        if code & 127 == 127:
            assert value != value, "all seven bits set is NaN"
        else:
            assert value == (-magnitude if sign else magnitude), code


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_tensor", [True, False], ids=["tensor", "channel"])
def test_float8_channels(shape: tuple[int, int], dtype: torch.dtype, per_tensor: bool, device: str) -> None:
    codes = random_float8(shape)
    scale = torch.rand(1) if per_tensor else torch.rand(shape[0], 1, dtype=torch.bfloat16)
    out = poisoned(shape, dtype, device)
    assert dequantize_fp8_channels(codes.to(device), scale.to(device), out) is out
    expected = reference_channels(codes, scale.expand(shape[0], 1) if per_tensor else scale)
    assert torch.equal(out.cpu(), rounded(expected, dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [(4, 3), (128, 128)], ids=str)
def test_float8_blocks(
    shape: tuple[int, int], dtype: torch.dtype, block_size: tuple[int, int], device: str
) -> None:
    codes = random_float8(shape)
    grid = [-(-length // step) for length, step in zip(shape, block_size, strict=True)]
    scale_inv = torch.rand(grid) * 0.01
    out = poisoned(shape, dtype, device)
    assert dequantize_fp8_blocks(codes.to(device), scale_inv.to(device), block_size, out) is out
    assert torch.equal(out.cpu(), rounded(reference_fp8_blocks(codes, scale_inv, block_size), dtype))


def test_known_float8_blocks() -> None:
    """Block scales 1, 10, 100, 1000 over a weight of ones: each quadrant shows its own."""
    codes = torch.ones(4, 6).to(torch.float8_e4m3fn)
    scale_inv = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    out = dequantize_fp8_blocks(codes, scale_inv, (3, 4), poisoned((4, 6), torch.float32, "cpu"))
    assert out.tolist() == [[1, 1, 1, 1, 10, 10]] * 3 + [[100, 100, 100, 100, 1000, 1000]]


def test_wrong_inputs_are_refused() -> None:
    codes, float8 = torch.zeros(4, 6, dtype=torch.int8), torch.zeros(4, 6).to(torch.float8_e4m3fn)
    out = torch.empty(4, 6)
    with pytest.raises(ValueError, match=r"scale has shape \[6\], expected \[4\] or \[4, 1\]"):
        dequantize_channels(codes, torch.ones(6), out)
    with pytest.raises(ValueError, match=r"codes is torch.float32, expected torch.int8"):
        dequantize_channels(codes.float(), torch.ones(4), out)
    with pytest.raises(ValueError, match=r"out has shape \[6, 4\]"):
        dequantize_channels(codes, torch.ones(4), torch.empty(6, 4))
    with pytest.raises(ValueError, match="contiguous"):
        dequantize_channels(codes, torch.ones(4), torch.empty(6, 4).t())
    with pytest.raises(ValueError, match=r"out is torch.float64"):
        dequantize_channels(codes, torch.ones(4), out.double())
    with pytest.raises(ValueError, match=r"scale_inv has shape \[1, 1\], expected \[2, 2\]"):
        dequantize_fp8_blocks(float8, torch.ones(1, 1), (3, 4), out)
    with pytest.raises(ValueError, match=r"expected torch.float8_e4m3fn"):
        dequantize_fp8_channels(float8.to(torch.float8_e5m2), torch.ones(1), out)
