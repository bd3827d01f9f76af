"""Backends of prefix attention against the float64 oracle, in every dtype, on odd shapes and poisoned memory.

Tolerance: at most twice the error of torch's own attention in the same dtype plus the rounding of the result,
both measured against the oracle. Shapes: query [N, T, H], key and value [K, C, H], visible [T, C].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from strata.kernels.prefix_attention.backend import AttentionRequest
from strata.kernels.prefix_attention.blocked import BLOCKED_ON_CPU
from strata.kernels.prefix_attention.flash_cpu import FlashOnCpu
from strata.kernels.prefix_attention.registry import choose_backend
from strata.kernels.prefix_attention.sdpa import SdpaBackend
from strata.kernels.prefix_attention.tile import Tile, gather_keys
from strata.kernels.prefix_attention.varlen import EFFICIENT, FLASH

from .attention_work import Work, make_work, poisoned_memory

BACKENDS = {
    "blocked": BLOCKED_ON_CPU.attend,
    "sdpa": SdpaBackend().attend,
    "flash-cpu": FlashOnCpu().attend,
    # Their kernels' place is taken by cuda_attention_ops.
    "efficient-varlen": EFFICIENT.attend,
    "flash-varlen": FLASH.attend,
}
FULL_PRECISION = [name for name in BACKENDS if name != "flash-varlen"]
CPU = torch.device("cpu")
__all__ = ["poisoned_memory"]


def causal_work(rows: int, dtype: torch.dtype, *, spread: float, size: int = 128) -> Work:
    """A chain of `rows` tokens, as a long prefix makes it."""
    work = make_work(rows, dtype, groups=2, spread=spread)
    tiles = tuple(
        Tile(
            rows=(start, min(rows, start + size)),
            key_ranges=((0, min(rows, start + size)),),
            num_keys=min(rows, start + size),
            num_unmasked=start,
            causal=True,
            visible=None,
        )
        for start in range(0, rows, size)
    )
    keys = (work.key[:, :rows], work.value[:, :rows])
    visible = torch.ones(rows, rows, dtype=torch.bool).tril()
    return Work(query=work.query, key=keys[0], value=keys[1], tiles=tiles, visible=visible)


def stock_attention(work: Work) -> torch.Tensor:
    """torch's own attention under the dense mask, [T, N, H]."""
    groups = work.query.shape[0] // work.key.shape[0]
    key, value = (states.repeat_interleave(groups, dim=0)[None] for states in (work.key, work.value))
    mask = work.visible.to(work.query.device)
    attended = scaled_dot_product_attention(work.query[None], key, value, mask, scale=work.scaling)
    return attended[0].transpose(0, 1)


def eager_attention(work: Work, softcap: float | None = None) -> torch.Tensor:
    """What transformers' "eager" attention computes: scores in the dtype, softmax in float32."""
    groups = work.query.shape[0] // work.key.shape[0]
    key, value = (states.repeat_interleave(groups, dim=0) for states in (work.key, work.value))
    scores = work.query @ key.transpose(1, 2) * work.scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~work.visible.to(scores.device), float("-inf"))
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(work.query.dtype)
    return (weights @ value).transpose(0, 1)


def errors(attended: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Maximum and RMS error."""
    difference = attended.double().cpu() - exact.cpu()
    return torch.stack((difference.abs().max(), difference.square().mean().sqrt()))


def rounding_floor(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Errors of the exact result rounded to the dtype, and of sums taken in another order."""
    accumulator = torch.promote_types(dtype, torch.float32)
    sums = 8 * torch.finfo(accumulator).eps * exact.abs().max().cpu()
    return (
        errors(exact.to(dtype), exact)
        + sums
        + torch.finfo(dtype).eps / 4 * exact.square().mean().sqrt().cpu()
    )


def assert_as_exact(attended: torch.Tensor, achievable: torch.Tensor, exact: torch.Tensor) -> None:
    """Maximum and RMS error at most twice the achievable ones, plus the rounding of the result."""
    assert attended.dtype == achievable.dtype
    assert attended.shape == exact.shape
    assert attended.isfinite().all()
    reached, possible = errors(attended, exact), errors(achievable, exact)
    assert (reached <= 2 * possible + rounding_floor(exact, attended.dtype)).all(), (
        f"errors (max, rms) {reached.tolist()}, achievable {possible.tolist()}"
    )


def with_odd_shapes(test: Callable) -> Callable:
    """Every combination of rows, query heads a kv head, and head dim."""
    test = pytest.mark.parametrize("head_dim", [8, 64, 80])(test)
    test = pytest.mark.parametrize("groups", [1, 4, 8])(test)
    return pytest.mark.parametrize("rows", [1, 127, 129])(test)


@with_odd_shapes
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("blocked", torch.float64),
        ("blocked", torch.float32),
        ("sdpa", torch.float64),
        ("sdpa", torch.float32),
        ("sdpa", torch.bfloat16),
        ("flash-cpu", torch.float32),
        ("efficient-varlen", torch.float32),
        ("efficient-varlen", torch.float16),
        ("flash-varlen", torch.bfloat16),
    ],
    ids=str,
)
def test_backends_agree_with_the_oracle(backend, dtype, rows, groups, head_dim):
    work = make_work(rows, dtype, groups=groups, head_dim=head_dim)
    attended = BACKENDS[backend](*work.inputs, work.tiles, work.settings())
    assert_as_exact(attended, stock_attention(work), work.oracle())


@with_odd_shapes
def test_blocked_in_bfloat16(rows, groups, head_dim):
    """Like eager attention, and unlike SDPA, it rounds scores to bfloat16: its largest error is eager's kind.

    Over a whole result the error is within twice SDPA's as well, as long as scores spread as little as these.
    """
    work = make_work(rows, torch.bfloat16, groups=groups, head_dim=head_dim)
    attended, exact = BLOCKED_ON_CPU.attend(*work.inputs, work.tiles, work.settings()), work.oracle()
    assert_as_exact(attended, eager_attention(work), exact)
    rms_bound = 2 * errors(stock_attention(work), exact) + rounding_floor(exact, torch.bfloat16)
    assert errors(attended, exact)[1] <= rms_bound[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [2.0, 50.0])
def test_soft_capped_scores(softcap, dtype):
    work = make_work(129, dtype, spread=3.0)
    attended = BLOCKED_ON_CPU.attend(*work.inputs, work.tiles, work.settings(softcap))
    assert_as_exact(attended, eager_attention(work, softcap), work.oracle(softcap))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", FULL_PRECISION)
def test_a_long_prefix(backend, dtype):
    work = causal_work(200, dtype, spread=1.0)
    attended = BACKENDS[backend](*work.inputs, work.tiles, work.settings())
    assert_as_exact(attended, stock_attention(work), work.oracle())


@pytest.mark.xfail(strict=True, reason="blocked keeps scores in bfloat16, torch's SDPA in float32")
@pytest.mark.parametrize("spread", [4.0, 8.0])
def test_blocked_in_bfloat16_is_as_exact_as_sdpa_when_scores_spread_wide(spread):
    work = causal_work(200, torch.bfloat16, spread=spread)
    attended = BLOCKED_ON_CPU.attend(*work.inputs, work.tiles, work.settings())
    assert_as_exact(attended, stock_attention(work), work.oracle())


@pytest.mark.parametrize("spread", [1.0, 4.0, 8.0])
def test_blocked_in_bfloat16_is_as_exact_as_eager_attention(spread):
    work = causal_work(200, torch.bfloat16, spread=spread)
    attended = BLOCKED_ON_CPU.attend(*work.inputs, work.tiles, work.settings())
    assert_as_exact(attended, eager_attention(work), work.oracle())


@pytest.mark.parametrize("backend", FULL_PRECISION)
def test_keys_outside_a_tile_do_not_leak(backend):
    work = make_work(129, torch.float32)
    clean = BACKENDS[backend](*work.inputs, work.tiles, work.settings())
    for tile in work.tiles:
        key, value = (torch.full_like(states, float("nan")) for states in (work.key, work.value))
        for start, end in tile.key_ranges:
            key[:, start:end] = work.key[:, start:end]
            value[:, start:end] = work.value[:, start:end]
        poisoned = BACKENDS[backend](work.query, key, value, work.tiles, work.settings())
        rows = slice(*tile.rows)
        torch.testing.assert_close(poisoned[rows], clean[rows], rtol=0, atol=0)


@pytest.mark.parametrize("backend", FULL_PRECISION)
def test_masked_keys_have_no_weight_at_all(backend):
    """A huge value behind the mask would show even at a weight of 1e-20."""
    work = make_work(129, torch.float32)
    clean = BACKENDS[backend](*work.inputs, work.tiles, work.settings())
    row = 120
    value = torch.where(work.visible[row][None, :, None], work.value, torch.full_like(work.value, 1e30))
    attended = BACKENDS[backend](work.query, work.key, value, work.tiles, work.settings())
    torch.testing.assert_close(attended[row], clean[row], rtol=0, atol=0)


@pytest.mark.parametrize("backend", FULL_PRECISION)
def test_tiles_may_come_in_any_order(backend):
    work = make_work(129, torch.float32)
    forward = BACKENDS[backend](*work.inputs, work.tiles, work.settings())
    backward = BACKENDS[backend](*work.inputs, work.tiles[::-1], work.settings())
    torch.testing.assert_close(backward, forward, rtol=0, atol=0)


@pytest.mark.parametrize("backend", FULL_PRECISION)
def test_inputs_are_left_as_they_were(backend):
    work = make_work(129, torch.float32)
    before = [states.clone() for states in work.inputs]
    BACKENDS[backend](*work.inputs, work.tiles, work.settings())
    assert all(torch.equal(*pair) for pair in zip(before, work.inputs, strict=True))


@pytest.mark.parametrize("backend", FULL_PRECISION)
def test_inputs_need_not_be_contiguous(backend):
    """transformers hands over [T, N, H] transposed."""
    work = make_work(129, torch.float32)
    strided = [states.transpose(0, 1).contiguous().transpose(0, 1) for states in work.inputs]
    attended = BACKENDS[backend](*strided, work.tiles, work.settings())
    assert_as_exact(attended, stock_attention(work), work.oracle())


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_what_is_chosen_on_cpu_is_exact_with_and_without_a_cap(softcap):
    work = make_work(127, torch.float32)
    backend = choose_backend(AttentionRequest(device_type="cpu", has_softcap=softcap is not None))
    attended = backend.attend(*work.inputs, work.tiles, work.settings(softcap))
    assert_as_exact(attended, eager_attention(work, softcap), work.oracle(softcap))


def test_visible_bits_round_trip():
    visible = np.random.default_rng(0).random((5, 13)) < 0.5
    tile = Tile(
        rows=(2, 7),
        key_ranges=((0, 16),),
        num_keys=16,
        num_unmasked=3,
        causal=False,
        visible=np.packbits(visible, axis=-1),
    )
    assert (tile.num_rows, tile.num_masked) == (5, 13)
    np.testing.assert_array_equal(tile.visible_mask(CPU).numpy(), visible)


def test_one_range_of_keys_is_not_copied():
    states = torch.randn(2, 10, 4)
    tile = Tile(rows=(0, 1), key_ranges=((3, 9),), num_keys=6, num_unmasked=6, causal=False, visible=None)
    assert gather_keys(states, tile).data_ptr() == states[:, 3:].data_ptr()


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def to_cuda(work: Work) -> Work:
    query, key, value = (states.cuda() for states in work.inputs)
    return Work(query=query, key=key, value=value, tiles=work.tiles, visible=work.visible.cuda())


@pytest.mark.gpu
@needs_cuda
@with_odd_shapes
def test_sdpa_in_float16_on_cuda(rows, groups, head_dim):
    work = to_cuda(make_work(rows, torch.float16, groups=groups, head_dim=head_dim))
    backend = choose_backend(AttentionRequest(device_type="cuda"))
    attended = backend.attend(*work.inputs, work.tiles, work.settings())
    assert attended.is_cuda
    assert_as_exact(attended, stock_attention(work), work.oracle())


@pytest.mark.gpu
@needs_cuda
def test_soft_capped_scores_in_float16_on_cuda():
    work = to_cuda(make_work(129, torch.float16, spread=3.0))
    backend = choose_backend(AttentionRequest(device_type="cuda", has_softcap=True))
    attended = backend.attend(*work.inputs, work.tiles, work.settings(5.0))
    assert_as_exact(attended, eager_attention(work, 5.0), work.oracle(5.0))
