"""GPTQ, AWQ and pack-quantized weights: known integers packed here must come back exactly.

The packers below follow the formats' definitions; random words are compared with the oracle.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from strata.kernels.dequant import blocks
from strata.kernels.dequant.packed_int4 import dequantize_awq, dequantize_gptq, dequantize_packed
from strata.kernels.dequant.parts import GptqParts, PackedParts
from strata.kernels.dequant.reference import reference_awq, reference_gptq, reference_packed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(autouse=True, params=["small tiles", "one tile"])
def block_size_on_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 rows and 64 columns make small weights take several, the last ones partial."""
    torch.manual_seed(0)
    if request.param == "small tiles":
        monkeypatch.setattr(blocks, "CACHED_ELEMENTS", 64 * 64)
        monkeypatch.setattr(blocks, "SERIAL_ELEMENTS", 64 * 64)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def poisoned(shape: tuple[int, int], dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def pack_last_axis(codes: torch.Tensor, bits: int, order: tuple[int, ...] = ()) -> torch.Tensor:
    """int32 words of unsigned codes along the last axis; nibble i of a word is code order[i] of its eight."""
    fields = 32 // bits
    padded = torch.nn.functional.pad(codes.long(), (0, -codes.shape[-1] % fields)).unflatten(-1, (-1, fields))
    words = torch.zeros(padded.shape[:-1], dtype=torch.int64)
    for i in range(fields):
        words += padded[..., order[i] if order else i] << (bits * i)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def pack_first_axis(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return pack_last_axis(codes.t(), bits).t().contiguous()


class Known:
    """Random codes [N, K], zero points and power-of-two scales [N, G], and the weight they stand for."""

    def __init__(
        self, shape: tuple[int, int], group_size: int, bits: int = 4, g_idx: torch.Tensor | None = None
    ):
        num_groups = -(-shape[1] // group_size)
        self.codes = torch.randint(0, 1 << bits, shape)
        self.zeros = torch.randint(0, 1 << bits, (shape[0], num_groups))
        self.scales = 2.0 ** torch.randint(-4, 4, (shape[0], num_groups))
        self.g_idx = torch.arange(shape[1]) // group_size if g_idx is None else g_idx
        self.weight = (self.codes - self.zeros[:, self.g_idx]) * self.scales[:, self.g_idx]

    def gptq(self, group_size: int, zero_offset: int, *, bits: int = 4, device: str = "cpu") -> GptqParts:
        """As GPTQ stores it, zero fields less by `zero_offset` and without a g_idx."""
        ones = sum(zero_offset << shift for shift in range(0, 32, bits))
        return GptqParts(
            qweight=pack_first_axis(self.codes.t(), bits).to(device),
            qzeros=(pack_last_axis(self.zeros.t(), bits) - ones).to(device),
            scales=self.scales.t().contiguous().half().to(device),
            group_size=group_size,
            zero_offset=zero_offset,
            bits=bits,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero_offset", [0, 1])
@pytest.mark.parametrize(
    ("shape", "group_size"), [((16, 32), 32), ((144, 192), 96), ((80, 400), 80)], ids=str
)
def test_gptq_integers_come_back(
    dtype: torch.dtype, bits: int, zero_offset: int, shape: tuple[int, int], group_size: int, device: str
) -> None:
    known = Known(shape, group_size, bits)
    stored = known.gptq(group_size, zero_offset, bits=bits, device=device)
    out = poisoned(shape, dtype, device)
    assert dequantize_gptq(stored, out) is out
    assert torch.equal(out.cpu(), known.weight.to(dtype))


@pytest.mark.parametrize("group_size", [-1, 64, 256, 1024])
def test_gptq_groups_wider_than_a_tile(group_size: int) -> None:
    known = Known((16, 1024), 1024 if group_size == -1 else group_size)
    out = poisoned((16, 1024), torch.float32, "cpu")
    dequantize_gptq(known.gptq(group_size, 1), out)
    assert torch.equal(out, known.weight)


def test_gptq_act_order(device: str) -> None:
    g_idx = torch.arange(192)[torch.randperm(192)] // 32
    known = Known((80, 192), 32, g_idx=g_idx)
    stored = replace(known.gptq(32, 1, device=device), g_idx=g_idx.int().to(device))
    out = poisoned((80, 192), torch.float32, device)
    dequantize_gptq(stored, out)
    assert torch.equal(out.cpu(), known.weight)


def test_gptq_with_an_ascending_g_idx_is_gptq_without() -> None:
    known = Known((64, 192), 32)
    out = poisoned((64, 192), torch.float32, "cpu")
    dequantize_gptq(replace(known.gptq(32, 0), g_idx=known.g_idx.int()), out)
    assert torch.equal(out, known.weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "act-order"])
def test_gptq_is_the_oracle(dtype: torch.dtype, act_order: bool) -> None:
    """Random words and float16 scales: the only rounding is that of the result."""
    g_idx = torch.arange(96)[torch.randperm(96)] // 32 if act_order else torch.arange(96) // 32
    stored = GptqParts(
        qweight=random_words(12, 72),
        qzeros=random_words(3, 9),
        scales=torch.rand(3, 72).half(),
        group_size=32,
        zero_offset=1,
        g_idx=g_idx if act_order else None,
    )
    out = poisoned((72, 96), dtype, "cpu")
    dequantize_gptq(stored, out)
    assert torch.equal(out, reference_gptq(stored, g_idx.tolist()).float().to(dtype))


def random_words(*shape: int) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "group_size"), [((8, 32), 32), ((72, 192), 96), ((80, 401), -1), ((16, 300), 100)], ids=str
)
def test_awq_integers_come_back(
    dtype: torch.dtype, shape: tuple[int, int], group_size: int, device: str
) -> None:
    known = Known(shape, shape[1] if group_size == -1 else group_size)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    qweight, qzeros = (pack_last_axis(part.t(), 4, order).to(device) for part in (known.codes, known.zeros))
    out = poisoned(shape, dtype, device)
    assert dequantize_awq(qweight, qzeros, known.scales.t().half().to(device), group_size, out) is out
    assert torch.equal(out.cpu(), known.weight.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_awq_is_the_oracle(dtype: torch.dtype) -> None:
    qweight, qzeros, scales = random_words(96, 9), random_words(3, 9), torch.rand(3, 72).half()
    out = poisoned((72, 96), dtype, "cpu")
    dequantize_awq(qweight, qzeros, scales, 32, out)
    assert torch.equal(out, reference_awq(qweight, qzeros, scales, 32).float().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("shape", "group_size"), [((5, 32), 32), ((70, 192), 96), ((13, 333), 333)], ids=str)
def test_packed_integers_come_back(
    dtype: torch.dtype, bits: int, symmetric: bool, shape: tuple[int, int], group_size: int, device: str
) -> None:
    known = Known(shape, group_size, bits)
    if symmetric:
        known.zeros = torch.full_like(known.zeros, 1 << (bits - 1))
        known.weight = (known.codes - known.zeros[:, known.g_idx]) * known.scales[:, known.g_idx]
    zero_point = None if symmetric else pack_first_axis(known.zeros, bits).to(device)
    packed, scale = pack_last_axis(known.codes, bits).to(device), known.scales.to(device)
    stored = PackedParts(packed=packed, scale=scale, zero_point=zero_point, bits=bits)
    out = poisoned(shape, dtype, device)
    assert dequantize_packed(stored, out) is out
    assert torch.equal(out.cpu(), known.weight.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_is_the_oracle(dtype: torch.dtype, bits: int) -> None:
    """With a g_idx, a partial last group and bfloat16 scales."""
    g_idx = torch.arange(100)[torch.randperm(100)] // 32
    stored = PackedParts(
        packed=random_words(70, -(-100 * bits // 32)),
        scale=torch.rand(70, 4).bfloat16(),
        zero_point=random_words(-(-70 * bits // 32), 4),
        g_idx=g_idx,
        bits=bits,
    )
    out = poisoned((70, 100), dtype, "cpu")
    dequantize_packed(stored, out)
    assert torch.equal(out, reference_packed(stored, g_idx.tolist()).float().to(dtype))


def test_a_partial_last_group_needs_its_size() -> None:
    known = Known((8, 100), 32)
    packed, out = pack_last_axis(known.codes, 4), poisoned((8, 100), torch.float32, "cpu")
    zero_point = pack_first_axis(known.zeros, 4)
    stored = PackedParts(packed=packed, scale=known.scales, zero_point=zero_point)
    fewer = replace(stored, scale=known.scales[:, :3], zero_point=zero_point[:, :3].contiguous())
    with pytest.raises(ValueError, match="100 columns in 3 groups"):
        dequantize_packed(fewer, out)
    dequantize_packed(replace(stored, group_size=32), out)
    assert torch.equal(out, known.weight)


def test_wrong_inputs_are_refused() -> None:
    stored, out = Known((16, 64), 32).gptq(32, 1), torch.empty(16, 64)
    with pytest.raises(ValueError, match="bits is 3, expected one of 2, 4, 8"):
        dequantize_gptq(replace(stored, bits=3), out)
    with pytest.raises(ValueError, match="bits is 2, expected one of 4, 8"):
        dequantize_packed(PackedParts(packed=stored.qweight, scale=stored.scales, bits=2), out)
    with pytest.raises(ValueError, match=r"qweight has shape \[8, 16\], expected \[64, 2\]"):
        dequantize_awq(stored.qweight, stored.qzeros, stored.scales, 32, out)
    with pytest.raises(ValueError, match="zero_offset is 2"):
        dequantize_gptq(replace(stored, zero_offset=2), out)
    with pytest.raises(ValueError, match="column 48 is in group 3, but scales have 2 groups"):
        dequantize_gptq(replace(stored, group_size=16), out)
    with pytest.raises(ValueError, match="nowhere negative"):
        dequantize_gptq(replace(stored, g_idx=torch.full((64,), -1)), out)
    with pytest.raises(ValueError, match="out has 63 columns, expected a multiple of 8"):
        dequantize_gptq(stored, torch.empty(16, 63))
