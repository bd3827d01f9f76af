"""GGUF decoders against the gguf package's own, bit for bit, on odd shapes and poisoned outputs.

Independent check: gguf.quants.dequantize, the numpy translation of ggml that llama.cpp's tools use.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strata.kernels.dequant import blocks
from strata.kernels.dequant.gguf.dequantize import BLOCK_TYPES, GgufParts, dequantize_gguf

gguf = pytest.importorskip("gguf")

from ..tiny_gguf import random_rows  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(autouse=True, params=["several blocks", "one block"])
def block_size_on_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks make small weights take several, the last one partial, and rows longer than a block."""
    if request.param == "several blocks":
        monkeypatch.setattr(blocks, "CACHED_ELEMENTS", 640)
        monkeypatch.setattr(blocks, "SERIAL_ELEMENTS", 640)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def expected(type_name: str, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[type_name]).copy())


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_sizes_are_ggmls(type_name: str) -> None:
    kind = BLOCK_TYPES[type_name]
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]] == (kind.weights, kind.num_bytes)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (13, 5)], ids=str)
@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_every_type_is_what_ggml_decodes(type_name: str, shape: tuple[int, int], device: str) -> None:
    rows = random_rows(type_name, *shape)
    exact = expected(type_name, rows)
    for dtype in DTYPES:
        out = poisoned(tuple(exact.shape), dtype, device)
        stored = GgufParts(packed=torch.from_numpy(rows).to(device), type_name=type_name)
        assert dequantize_gguf(stored, out) is out
        assert torch.equal(out.cpu(), exact.to(dtype))


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q4_1", "Q6_K"])
def test_rows_in_another_order_and_an_offset(type_name: str, device: str) -> None:
    rows = random_rows(type_name, 11, 3)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    exact = expected(type_name, rows)[order] - 1
    for dtype in DTYPES:
        out = poisoned(tuple(exact.shape), dtype, device)
        packed = torch.from_numpy(rows).to(device)
        dequantize_gguf(GgufParts(packed=packed, type_name=type_name, row_order=order, offset=-1.0), out)
        assert torch.equal(out.cpu(), exact.to(dtype))


def test_rows_of_another_length_are_refused() -> None:
    packed = torch.zeros(2, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"packed has shape \[2, 40\], expected \[2, 36\]"):
        dequantize_gguf(GgufParts(packed=packed, type_name="Q4_0"), torch.empty(2, 64))
