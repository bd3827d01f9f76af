"""Fused functions of CPUs against the float64 oracle: within twice the error of transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strata.kernels.elementwise import plain
from strata.kernels.elementwise.functions import ACTIVATIONS, Activation, NormSettings
from strata.kernels.elementwise.fused_cpu import FUSED_ON_CPU, gated, rms_norm, rotate
from strata.kernels.elementwise.reference import reference_gated, reference_rms_norm, reference_rotate
from strata.kernels.elementwise.registry import choose_functions

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STYLES = (
    NormSettings(eps=1e-5, offset=0.0, rounds_first=True),
    NormSettings(eps=1e-6, offset=1.0, rounds_first=False),
    NormSettings(eps=1e-6, offset=0.0, rounds_first=False),
)


def draw(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_within_twice(fused: torch.Tensor, usual: torch.Tensor, exact: torch.Tensor) -> None:
    assert fused.dtype == usual.dtype
    assert fused.shape == usual.shape
    reached, possible = ((found.double() - exact).abs().max() for found in (fused, usual))
    assert reached <= 2 * possible + torch.finfo(fused.dtype).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", STYLES, ids=["llama", "gemma", "olmo2"])
@pytest.mark.parametrize("rows", [1, 3, 128])
def test_norms(rows: int, settings: NormSettings, dtype: torch.dtype) -> None:
    x, weight = 30 * draw(rows, 72, dtype=dtype), draw(72, dtype=dtype)
    x[0] /= 30_000  # so small that eps counts
    before = x.clone()
    usual = plain.rms_norm(x, weight, settings.eps, settings.offset, settings.rounds_first)
    assert_within_twice(rms_norm(x, weight, settings), usual, reference_rms_norm(x, weight, settings))
    assert torch.equal(x, before)


@pytest.mark.parametrize("settings", STYLES, ids=["llama", "gemma", "olmo2"])
def test_norms_of_float32_are_those_of_the_family_to_the_bit(settings: NormSettings) -> None:
    x, weight = draw(5, 72, dtype=torch.float32), draw(72, dtype=torch.float32)
    usual = plain.rms_norm(x, weight, settings.eps, settings.offset, settings.rounds_first)
    assert torch.equal(rms_norm(x, weight, settings), usual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [16, 8], ids=["whole", "partial"])
def test_rotations_wherever_heads_lie(width: int, dtype: torch.dtype) -> None:
    query = draw(1, 5, 4, 16, dtype=dtype).transpose(1, 2)
    key = draw(1, 2, 5, 16, dtype=dtype)
    cos, sin = draw(1, 5, width, dtype=dtype), draw(1, 5, width, dtype=dtype).flip(1)
    found, usual = rotate(query, key, cos, sin), plain.rotate(query, key, cos, sin)
    for states, one, other in zip((query, key), found, usual, strict=True):
        assert_within_twice(one, other, reference_rotate(states[0], cos[0], sin[0])[None])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 40])
def test_gates(rows: int, activation: Activation, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    gate, up = (nn.Linear(64, 96, bias=bias, dtype=dtype).requires_grad_(False) for _ in range(2))
    x = draw(1, rows, 64, dtype=dtype)
    wide = [
        nn.functional.linear(x.double(), one.weight.double(), one.bias.double() if bias else None)
        for one in (gate, up)
    ]
    exact = reference_gated(wide[0], wide[1], activation)
    usual = plain.gated(gate(x), up(x), activation)
    assert_within_twice(gated(x, gate, up, activation), usual, exact)


def test_what_stands_for_a_linear_module_is_called() -> None:
    """Its weight alone would be computed with otherwise, without what an adapter adds."""

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    gate, up = (Doubled(8, 8, bias=False).requires_grad_(False) for _ in range(2))
    x = draw(3, 8, dtype=torch.float32)
    assert torch.equal(gated(x, gate, up, "silu"), plain.gated(gate(x), up(x), "silu"))


def test_a_product_that_is_watched_is_computed_as_it_is() -> None:
    """Hooks, as of `strata pack --calibrate`, see what a module is given."""
    seen = []
    gate, up = (nn.Linear(8, 8, bias=False).requires_grad_(False) for _ in range(2))
    up.register_forward_hook(lambda module, given, output: seen.append(given))
    gated(draw(3, 8, dtype=torch.float32), gate, up, "silu")
    assert len(seen) == 1


def test_gates_inside_products_only_where_these_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AMX the two products are torch's own, so every bit is."""
    gate, up = (nn.Linear(64, 96, bias=False, dtype=torch.bfloat16).requires_grad_(False) for _ in range(2))
    x = draw(1, 40, 64, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert torch.equal(gated(x, gate, up, "silu"), plain.gated(gate(x), up(x), "silu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_cpu_has_them(dtype: torch.dtype) -> None:
    assert choose_functions(torch.device("cpu"), dtype) is FUSED_ON_CPU
    assert choose_functions(torch.device("meta"), dtype) is None
