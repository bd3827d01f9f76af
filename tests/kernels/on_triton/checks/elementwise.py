"""The fused functions, interpreted or on a card, against float64 and beside torch in the same dtype.

The interpreter cuts float32 off to bfloat16 where a card rounds, so bits are asked for in the other dtypes.
"""

from __future__ import annotations

import os

import pytest
import torch

from strata.kernels.elementwise import plain, triton_kernels
from strata.kernels.elementwise.functions import ACTIVATIONS, NormSettings
from strata.kernels.elementwise.reference import reference_gated, reference_rms_norm, reference_rotate
from strata.kernels.triton_support import probe

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LLAMA = NormSettings(eps=1e-5, offset=0.0, rounds_first=True)
GEMMA = NormSettings(eps=1e-6, offset=1.0, rounds_first=False)
OLMO = NormSettings(eps=1e-6, offset=0.0, rounds_first=False)
STYLES = {"llama": LLAMA, "gemma": GEMMA, "olmo": OLMO}
NORM_CASES = (
    *(((26, 48), style) for style in STYLES),
    ((1, 1), "llama"),
    ((1, 7), "gemma"),
    ((3, 100), "olmo"),
    ((5, 2048), "gemma"),
    ((2, 2500), "llama"),
)
ROTATED = (
    (1, (1, 1), (16, 16)),
    (26, (4, 2), (20, 12)),
    (26, (9, 3), (96, 96)),
    (1, (4, 2), (6, 2)),
    (1, (9, 3), (20, 12)),
    (26, (1, 1), (6, 2)),
)
"""Tokens, heads of queries and keys, and the size of a head with what of it is rotated."""
GATED = (
    *(((26, 48), activation) for activation in ACTIVATIONS),
    ((1, 1), "gelu"),
    ((1, 1, 1025), "silu"),
    ((2, 3, 100), "gelu_tanh"),
)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))


def assert_close(found: torch.Tensor, exact: torch.Tensor, torchs_own: torch.Tensor) -> None:
    """Not further from float64 than twice torch's own error and one rounding."""
    assert found.dtype == torchs_own.dtype
    error = (found.double() - exact).abs()
    rounding = torch.finfo(found.dtype).eps * exact.abs().clamp_min(torch.finfo(found.dtype).tiny)
    allowed = 2 * (torchs_own.double() - exact).abs().max() + rounding
    assert bool((error <= allowed).all()), float((error - allowed).max())


@pytest.mark.parametrize(("shape", "style"), NORM_CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm(shape: tuple[int, int], style: str, dtype: torch.dtype) -> None:
    settings = STYLES[style]
    x, weight = 3 * draw(*shape, dtype=dtype), draw(shape[1], dtype=dtype, seed=1)
    x[0] *= 1e-3  # eps must count
    ways = (settings.eps, settings.offset, settings.rounds_first)
    found, _ = triton_kernels.launch_rms_norm(x, None, weight, *ways)
    assert_close(found, reference_rms_norm(x, weight, settings), plain.rms_norm(x, weight, *ways))


@pytest.mark.parametrize("shape", [(1, 7), (26, 48), (2, 2500)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_residual_is_added_and_rounded_first(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual, weight = (
        draw(*size, dtype=dtype, seed=i) for i, size in enumerate((shape, shape, shape[1:]))
    )
    ways = (LLAMA.eps, LLAMA.offset, LLAMA.rounds_first)
    found, total = triton_kernels.launch_rms_norm(x, residual, weight, *ways)
    exact_total = x.double() + residual.double()
    assert_close(total, exact_total, residual + x)
    if dtype != torch.bfloat16:
        assert torch.equal(total, residual + x)
    assert_close(found, reference_rms_norm(total, weight, LLAMA), plain.rms_norm(total, weight, *ways))


def test_the_convention_matters() -> None:
    """A wrong order of product and rounding is told from the right one."""
    x, weight = draw(26, 48, dtype=torch.float16), draw(48, dtype=torch.float16, seed=1)
    llama, _ = triton_kernels.launch_rms_norm(x, None, weight, 1e-5, 0.0, True)
    olmo, _ = triton_kernels.launch_rms_norm(x, None, weight, 1e-5, 0.0, False)
    for found, rounds_first in ((llama, True), (olmo, False)):
        of_its_own, of_the_other = (
            (found == plain.rms_norm(x, weight, 1e-5, 0.0, way)).double().mean()
            for way in (rounds_first, not rounds_first)
        )
        # A card sums a row in another order, and a value beside a tie then rounds the other way.
        assert of_its_own >= (1.0 if DEVICE == "cpu" else 0.99)
        assert of_the_other < 0.9


def test_rows_may_lie_apart_and_have_more_axes() -> None:
    x, weight = draw(3, 4, 20, dtype=torch.float32)[..., :13], draw(13, dtype=torch.float32, seed=1)
    found, _ = triton_kernels.launch_rms_norm(x, None, weight, 1e-6, 0.0, True)
    torch.testing.assert_close(found, plain.rms_norm(x, weight, 1e-6, 0.0, True))


@pytest.mark.parametrize(("num_tokens", "heads", "sizes"), ROTATED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotate(num_tokens: int, heads: tuple[int, int], sizes: tuple[int, int], dtype: torch.dtype) -> None:
    head_dim, width = sizes
    query, key = (
        draw(1, num_tokens, count, head_dim, dtype=dtype, seed=count).transpose(1, 2) for count in heads
    )
    cos, sin = (draw(1, num_tokens, width, dtype=dtype, seed=7 + i) for i in range(2))
    found = triton_kernels.launch_rotate(query, key, cos, sin)
    expected = plain.rotate(query, key, cos, sin)
    for given, turned, torchs_own in zip((query, key), found, expected, strict=True):
        assert turned.shape == given.shape
        assert_close(turned[0], reference_rotate(given[0], cos[0], sin[0]), torchs_own[0])


def test_heads_of_a_joint_projection_are_rotated_where_they_lie() -> None:
    joint = draw(1, 5, 7 * 8, dtype=torch.float32)
    query, key = (
        joint[..., :32].view(1, 5, 4, 8).transpose(1, 2),
        joint[..., 32:48].view(1, 5, 2, 8).transpose(1, 2),
    )
    cos, sin = (draw(1, 5, 8, dtype=torch.float32, seed=i) for i in (1, 2))
    for found, expected in zip(
        triton_kernels.launch_rotate(query, key, cos, sin), plain.rotate(query, key, cos, sin), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("shape", "activation"), GATED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated(shape: tuple[int, ...], activation: str, dtype: torch.dtype) -> None:
    gate, up = 4 * draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    found = triton_kernels.launch_gated(gate, up, activation)
    assert_close(found, reference_gated(gate, up, activation), plain.gated(gate, up, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extremes_neither_overflow_nor_become_nan(activation: str) -> None:
    gate = torch.tensor([-6e4, -200.0, -20.0, 0.0, 20.0, 200.0, 6e4], device=DEVICE)
    up = torch.ones_like(gate)
    found = triton_kernels.launch_gated(gate, up, activation)
    torch.testing.assert_close(found, plain.gated(gate, up, activation), rtol=1e-5, atol=1e-6)


def test_halves_of_a_joint_projection_are_read_where_they_lie() -> None:
    gate, up = draw(1, 5, 26, dtype=torch.float32).chunk(2, dim=-1)
    torch.testing.assert_close(triton_kernels.launch_gated(gate, up, "silu"), plain.gated(gate, up, "silu"))


def test_no_rows_are_no_error() -> None:
    x, weight = torch.zeros(0, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    assert triton_kernels.launch_rms_norm(x, None, weight, 1e-6, 0.0, True)[0].shape == (0, 8)
    assert triton_kernels.launch_gated(x, x, "silu").shape == (0, 8)


def test_the_probe() -> None:
    assert probe.launch_add_one(torch.arange(3.0, device=DEVICE)).tolist() == [1, 2, 3]
