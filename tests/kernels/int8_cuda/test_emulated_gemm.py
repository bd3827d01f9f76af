"""The CUDA product of int8 matrices, run on the CPU: exact in int64, and its epilogue in float64.

Threads and blocks take turns in a random order, asynchronous copies land as late as they may, operands end
where memory does: what a card would meet now and then, such as a missing barrier, shows here.
"""

from __future__ import annotations

import pytest
import torch

from strata.kernels.int8_linear.cuda.source import SOURCE_FOLDER

from ..int8_work import FLOAT32_EPS
from .conftest import Emulate

CAPABILITIES = (75, 80)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = ((1, 16, 16), (3, 32, 48), (128, 128, 64), (129, 144, 80), (200, 272, 208), (260, 16, 336))
"""T, N, K: one tile and several, steps that fill and do not, fewer steps than stages and more."""
SOURCE = (SOURCE_FOLDER / "kernels.cu").read_text(encoding="ascii")


def random_codes(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)


def assert_product_is_exact(
    emulate: Emulate, capability: int, shape: tuple[int, int, int], **changed: str
) -> None:
    num_tokens, num_outputs, num_inputs = shape
    codes_TK, codes_NK = random_codes(num_tokens, num_inputs), random_codes(num_outputs, num_inputs, seed=1)
    kernels = emulate(capability, torch.float32, **changed)
    ones = torch.ones(max(num_tokens, num_outputs))
    for seed in (0, 1):
        found = kernels.int8_gemm(codes_TK, ones[:num_tokens], codes_NK, ones[:num_outputs], seed=seed)
        assert torch.equal(found.long(), codes_TK.long() @ codes_NK.long().t())
    assert kernels.bank_conflicts == 0


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_exact(emulate: Emulate, capability: int, shape: tuple[int, int, int]) -> None:
    assert_product_is_exact(emulate, capability, shape)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_largest_codes_do_not_saturate(emulate: Emulate, capability: int) -> None:
    codes = torch.full((16, 4096), 127, dtype=torch.int8)
    codes[1::2] = -127
    ones = torch.ones(16)
    found = emulate(capability, torch.float32).int8_gemm(codes, ones, codes, ones)
    assert torch.equal(found.long(), codes.long() @ codes.long().t())


@pytest.mark.parametrize("adds", [False, True], ids=["alone", "added"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_epilogue(emulate: Emulate, dtype: torch.dtype, adds: bool) -> None:
    """Three scalings or sums in float32 and one rounding to the dtype."""
    generator = torch.Generator().manual_seed(7)
    codes_TK, codes_NK = random_codes(33, 80), random_codes(48, 80, seed=1)
    scale_T, scale_N = torch.rand(33, generator=generator) / 100, torch.rand(48, generator=generator) / 100
    bias, addend = (torch.randn(size, generator=generator).to(dtype) for size in ((48,), (33, 48)))
    found = emulate(75, dtype).int8_gemm(codes_TK, scale_T, codes_NK, scale_N, bias, addend if adds else None)
    product = (codes_TK.double() @ codes_NK.double().t()) * scale_T.double()[:, None] * scale_N.double()
    terms = [product, bias.double().expand(33, 48), *([addend.double()] if adds else [])]
    expected = sum(terms[1:], terms[0])
    magnitude = sum((term.abs() for term in terms[1:]), terms[0].abs())
    tolerance = 5 * FLOAT32_EPS * magnitude + 0.5 * torch.finfo(dtype).eps * expected.abs()
    assert ((found.double() - expected).abs() <= tolerance + torch.finfo(dtype).smallest_normal).all()


def test_what_is_not_finite_shows(emulate: Emulate) -> None:
    codes, ones = random_codes(4, 32), torch.ones(16)
    scale_T = torch.tensor([1.0, float("nan"), float("inf"), 1e30])
    for dtype in DTYPES:
        found = emulate(80, dtype).int8_gemm(codes, scale_T, random_codes(16, 32), ones)
        assert found[0].isfinite().all()
        assert not found[1:3].isfinite().any()
        assert found[3].isinf().any() == (dtype == torch.float16)


MISTAKES = {
    "no barrier": ("        __syncthreads();\n        const int ahead", "        const int ahead"),
    "no wait": ("        await_step();\n", ""),
    "halves of a step swapped": ("first + lane / 8 % 2", "first + 1 - lane / 8 % 2"),
    "a stage that is still read": (
        "const int ahead = step + NUM_STAGES - 1",
        "const int ahead = step + NUM_STAGES",
    ),
    "rows that meet in a bank": ("(chunk ^ (row >> 1)) % ROW_CHUNKS", "chunk % ROW_CHUNKS"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(emulate: Emulate, mistake: str) -> None:
    """On sm80, whose copies are asynchronous."""
    old, new = MISTAKES[mistake]
    assert SOURCE.count(old) == 1
    with pytest.raises(AssertionError):
        assert_product_is_exact(emulate, 80, (129, 144, 336), source=SOURCE.replace(old, new))
