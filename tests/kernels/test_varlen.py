"""Attention by variable-length kernels: what they are asked, in one call; windows; gradients.

The kernels' own place is taken by cuda_attention_ops, which refuses what CUDA refuses; results are compared
with the float64 oracle under the dense mask that the tiles stand for.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from strata.kernels.prefix_attention import sequences
from strata.kernels.prefix_attention.blocked import BLOCKED_ON_CPU
from strata.kernels.prefix_attention.flash_cpu import FlashOnCpu
from strata.kernels.prefix_attention.reference import reference_attention
from strata.kernels.prefix_attention.sdpa import SdpaBackend
from strata.kernels.prefix_attention.sequences import plan_sequences
from strata.kernels.prefix_attention.tile import PlannedTiles, Tile
from strata.kernels.prefix_attention.varlen import EFFICIENT, FLASH, FLASH_ATTN, VarlenBackend

from .attention_work import Work, make_work, poisoned_memory
from .cuda_attention_ops import ASKED, flash_forward
from .test_prefix_attention import assert_as_exact, stock_attention

__all__ = ["poisoned_memory"]
CPU = torch.device("cpu")


def sequence(first: int, rows: int, before: tuple[int, int], own: int, window: int | None = None) -> Tile:
    """Rows from `first` on, whose keys are a range before and then their own from key `own` on."""
    num_before = before[1] - before[0]
    return Tile(
        rows=(first, first + rows),
        key_ranges=(before, (own, own + rows)),
        num_keys=num_before + rows,
        num_unmasked=0 if window else num_before,
        causal=True,
        visible=None,
        window=window,
    )


def sequence_work(dtype: torch.dtype, window: int | None = None, groups: int = 4, kv_heads: int = 2) -> Work:
    """Three sequences, one of them of one row, under keys that they share."""
    tiles = (
        sequence(0, 40, (5, 22), 30, window),
        sequence(40, 1, (5, 60), 70, window),
        sequence(41, 9, (0, 33), 71, window),
    )
    work = make_work(50, dtype, groups=groups, num_kv_heads=kv_heads)
    visible = torch.zeros(50, work.key.shape[1], dtype=torch.bool)
    for tile in tiles:
        keys = [key for start, end in tile.key_ranges for key in range(start, end)]
        for row in range(*tile.rows):
            seen = keys[: tile.num_keys - tile.rows[1] + row + 1]
            visible[row, seen[-window:] if window else seen] = True
    return replace(work, tiles=tiles, visible=visible)


def name_of(parameter: object) -> str:
    """The same in every process, as test ids must be: a backend's own words hold addresses."""
    return getattr(parameter, "name", str(parameter))


def error(attended: torch.Tensor, exact: torch.Tensor) -> float:
    return float((attended.detach().double() - exact).abs().max())


@pytest.mark.parametrize("window", [None, 1, 12, 45, 1000])
@pytest.mark.parametrize(("groups", "kv_heads"), [(1, 3), (4, 2), (8, 1)])
@pytest.mark.parametrize(
    ("backend", "dtype", "bound"),
    [
        (EFFICIENT, torch.float32, 1e-5),
        (EFFICIENT, torch.float16, 2e-3),
        (FLASH, torch.bfloat16, 2e-2),
        (SdpaBackend(), torch.float32, 1e-5),
        (BLOCKED_ON_CPU, torch.float32, 1e-5),
        (FlashOnCpu(), torch.float32, 1e-5),
        (FlashOnCpu(), torch.bfloat16, 2e-2),
    ],
    ids=name_of,
)
def test_sequences_equal_the_oracle(backend, dtype, bound, groups, kv_heads, window):
    work = sequence_work(dtype, window, groups, kv_heads)
    attended = backend.attend(*work.inputs, work.tiles, work.settings())
    assert attended.shape == (50, groups * kv_heads, 64)
    assert error(attended, work.oracle()) < bound


@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(FlashOnCpu(), torch.bfloat16), (FLASH, torch.bfloat16), (EFFICIENT, torch.float16)],
    ids=name_of,
)
def test_sequences_are_as_exact_as_torchs_own_attention(backend, dtype, groups, spread):
    """Parts of a sequence that are attended apart and merged, too: scores are nowhere rounded to 16 bits."""
    work = sequence_work(dtype, groups=groups)
    work = replace(work, query=work.query * spread)
    attended = backend.attend(*work.inputs, work.tiles, work.settings())
    assert_as_exact(attended, stock_attention(work), work.oracle())


@pytest.mark.parametrize(
    ("backend", "dtype", "calls"),
    [
        (EFFICIENT, torch.float16, [("efficient", 3, 40, 57, None)] * 2),
        (FLASH, torch.bfloat16, [("flash", 3, 40, 57, None)]),
    ],
    ids=["efficient", "flash"],
)
def test_one_call_computes_all_sequences_or_one_a_kv_head(backend: VarlenBackend, dtype, calls):
    work = sequence_work(dtype)
    ASKED.calls.clear()
    backend.attend(*work.inputs, work.tiles, work.settings())
    assert ASKED.calls == calls


def test_no_key_is_repeated_for_the_heads_that_share_it():
    """What the kernel is given has a head axis of stride 0."""
    work, strides = sequence_work(torch.float32), []
    original = torch.ops.aten._efficient_attention_forward

    def watched(query, key, value, *rest, **named):
        strides.append((key.stride(2), value.stride(2)))
        return original(query, key, value, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.aten, "_efficient_attention_forward", watched)
        EFFICIENT.attend(*work.inputs, work.tiles, work.settings())
    assert strides == [(0, 0), (0, 0)]


def test_keys_of_one_range_are_not_gathered():
    tile = replace(sequence(0, 10, (3, 9), 9), key_ranges=((3, 19),))
    (call,) = plan_sequences((tile,), CPU).calls
    states = torch.randn(2, 40, 8)
    assert call.gather is None
    assert call.gathered(states).data_ptr() == states[:, 3:].data_ptr()


def test_a_plan_is_made_once_and_kept_with_its_tiles():
    tiles = PlannedTiles(sequence_work(torch.float32).tiles)
    assert plan_sequences(tiles, CPU) is plan_sequences(tiles, CPU)
    assert plan_sequences(tiles, CPU) is not plan_sequences(tiles, CPU, windows=False)
    assert plan_sequences(tuple(tiles), CPU) is not plan_sequences(tuple(tiles), CPU)


def test_a_call_gathers_no_more_keys_than_it_may(monkeypatch):
    """26 options of one token under a long prefix gather it 26 times."""
    monkeypatch.setattr(sequences, "GATHERED_KEYS", 90)
    work = sequence_work(torch.float32)
    calls = plan_sequences(work.tiles, CPU).calls
    assert [call.rows for call in calls] == [(0, 40), (40, 41), (41, 50)]
    attended = EFFICIENT.attend(*work.inputs, work.tiles, work.settings())
    assert error(attended, work.oracle()) < 1e-5


@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize(
    ("backend", "dtype"), [(EFFICIENT, torch.float32), (FLASH, torch.bfloat16)], ids=name_of
)
def test_gradients_equal_those_of_the_oracle_in_windows_too(backend, dtype, window):
    """The memory-efficient kernel's own backward pass would be wrong in a window: it is not asked there."""
    work = sequence_work(dtype, window)
    exact = [tensor.double().requires_grad_() for tensor in work.inputs]
    found = [tensor.clone().requires_grad_() for tensor in work.inputs]
    upstream = torch.randn(50, 8, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference_attention(*exact, work.visible, work.settings()).backward(upstream)
    backend.attend(*found, work.tiles, work.settings()).backward(upstream.to(dtype))
    bound = 2e-6 if dtype == torch.float32 else 2e-2
    for mine, theirs in zip(found, exact, strict=True):
        assert float((mine.grad.double() - theirs.grad).norm() / theirs.grad.norm()) < bound


def test_the_package_flash_attn_is_called_as_it_wants(monkeypatch):
    asked = {}

    def flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal, window_size, softcap
    ):
        asked.update(softcap=softcap, window=window_size)
        left, right = window_size
        return flash_forward(
            q, k, v, cu_q, cu_k, max_q, max_k, 0.0, causal, False,
            scale=softmax_scale, window_size_left=left, window_size_right=right,
        )[0]  # fmt: skip

    package = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    work = sequence_work(torch.bfloat16, 12)
    attended = FLASH_ATTN.attend(*work.inputs, work.tiles, work.settings())
    assert error(attended, work.oracle()) < 2e-2
    assert asked == {"softcap": 0.0, "window": (11, 0)}
    FLASH_ATTN.attend(*work.inputs, work.tiles, work.settings(30.0))
    assert asked["softcap"] == 30.0
