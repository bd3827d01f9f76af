"""Siblings that share what is above them: two calls and a merge, nearly as exact as one; when they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from strata.kernels.prefix_attention import sequences
from strata.kernels.prefix_attention.parts import gather_keys, merge_attention
from strata.kernels.prefix_attention.reference import reference_attention
from strata.kernels.prefix_attention.sequences import plan_sequences
from strata.kernels.prefix_attention.tile import PlannedTiles, Ranges, Tile
from strata.kernels.prefix_attention.varlen import EFFICIENT, FLASH

from ..attention_work import Work, make_work, poisoned_memory
from ..cuda_attention_ops import ASKED
from ..test_prefix_attention import errors, rounding_floor, stock_attention

__all__ = ["poisoned_memory"]
CPU = torch.device("cpu")
CARRIED: Ranges = ((0, 4), (6, 8))
PATH: Ranges = (*CARRIED, (10, 150))
"""Of 146 keys, above three siblings; two more are under another, after a sequence of its own."""


def sequence(first: int, rows: int, before: Ranges, own: int) -> Tile:
    num_before = sum(end - start for start, end in before)
    return Tile(
        rows=(first, first + rows),
        key_ranges=(*before, (own, own + rows)),
        num_keys=num_before + rows,
        num_unmasked=num_before,
        causal=True,
        visible=None,
    )


TILES = (
    sequence(0, 9, PATH, 150),
    sequence(9, 1, PATH, 159),
    sequence(10, 20, PATH, 160),
    sequence(30, 5, CARRIED, 180),
    sequence(35, 7, ((0, 140),), 185),
    sequence(42, 8, ((0, 140),), 192),
)


SINGLE_ROWS = tuple(sequence(row, 1, PATH, 150 + row) for row in range(26))


def sibling_work(
    dtype: torch.dtype,
    groups: int = 4,
    kv_heads: int = 2,
    spread: float = 1.0,
    tiles: tuple[Tile, ...] = TILES,
) -> Work:
    num_rows = tiles[-1].rows[1]
    work = make_work(num_rows, dtype, groups=groups, num_kv_heads=kv_heads, spread=spread)
    visible = torch.zeros(num_rows, work.key.shape[1], dtype=torch.bool)
    for tile in tiles:
        keys = [key for start, end in tile.key_ranges for key in range(start, end)]
        for row in range(*tile.rows):
            visible[row, keys[: tile.num_before + row - tile.rows[0] + 1]] = True
    return replace(work, tiles=tiles, visible=visible)


def assert_nearly_as_exact(attended: torch.Tensor, work: Work) -> None:
    """Both parts are rounded once more than torch's own attention: three roundings for one, at worst."""
    exact, achievable = work.oracle(), stock_attention(work)
    assert attended.isfinite().all()
    allowed = torch.tensor([3.0, 1.5]) * errors(achievable, exact) + rounding_floor(exact, attended.dtype)
    assert (errors(attended, exact) <= allowed).all()


@pytest.mark.parametrize("tiles", [TILES, SINGLE_ROWS], ids=["several rows", "single rows"])
@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize(("groups", "kv_heads"), [(1, 3), (4, 2), (8, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_merged_parts_are_nearly_as_exact_as_torchs_own_attention(dtype, groups, kv_heads, spread, tiles):
    work = sibling_work(dtype, groups, kv_heads, spread, tiles)
    attended = FLASH.attend(*work.inputs, work.tiles, work.settings())
    assert_nearly_as_exact(attended, work)


def test_what_is_above_siblings_is_attended_once():
    work = sibling_work(torch.bfloat16)
    ASKED.calls.clear()
    FLASH.attend(*work.inputs, work.tiles, work.settings())
    assert ASKED.calls == [("flash", 6, 20, 20, None), ("flash without a mask", 2, 30, 146, None)]


def test_keys_are_gathered_once_for_all_siblings():
    (call,) = plan_sequences(TILES, CPU, shares=True).calls
    states = torch.arange(203.0)[None, :, None]
    own = [key for start, end in ((150, 180), *CARRIED, (180, 200)) for key in range(start, end)]
    above = [key for start, end in (*PATH, (0, 140)) for key in range(start, end)]
    assert call.gathered(states).flatten().tolist() == own
    assert call.shared is not None
    assert call.shared.call.gathered(states).flatten().tolist() == above
    assert call.shared.query_rows.tolist() == [*range(30), *range(35, 50)]
    assert call.shared.call.cu_seqlens_q.tolist() == [0, 30, 45]


def test_rows_count_from_their_call(monkeypatch):
    """The second call's siblings begin at its own row 5."""
    monkeypatch.setattr(sequences, "GATHERED_KEYS", 200)
    first, second = plan_sequences(TILES, CPU, shares=True).calls
    assert (first.rows, second.rows) == ((0, 35), (35, 50))
    assert first.shared is not None
    assert second.shared is not None
    assert second.shared.query_rows.tolist() == list(range(15))
    work = sibling_work(torch.bfloat16)
    attended = FLASH.attend(*work.inputs, work.tiles, work.settings())
    assert_nearly_as_exact(attended, work)


@pytest.mark.parametrize(
    "tiles",
    [
        TILES[3:5],
        (TILES[0], replace(TILES[1], rows=(10, 11))),
        tuple(replace(tile, window=40) for tile in TILES[:3]),
        (sequence(35, 5, ((10, 137),), 185), sequence(40, 5, ((10, 137),), 190)),
    ],
    ids=["different paths", "a gap between rows", "windows", "few keys"],
)
def test_others_gather_what_is_above_each(tiles):
    assert all(call.shared is None for call in plan_sequences(tiles, CPU, shares=True).calls)


def test_kernels_without_log_sum_exps_and_training_do_not_share():
    work = sibling_work(torch.float16)
    ASKED.calls.clear()
    EFFICIENT.attend(*work.inputs, work.tiles, work.settings())
    assert {name for name, *_ in ASKED.calls} == {"efficient"}
    ASKED.calls.clear()
    inputs = [tensor.clone().requires_grad_() for tensor in work.inputs]
    exact = [tensor.double().requires_grad_() for tensor in work.inputs]
    tiles = PlannedTiles(work.tiles)
    FLASH.attend(*work.inputs, tiles, work.settings())
    FLASH.attend(*inputs, tiles, work.settings()).double().square().sum().backward()
    assert [call[0] for call in ASKED.calls] == ["flash", "flash without a mask", "flash"]
    reference_attention(*exact, work.visible, work.settings()).square().sum().backward()
    for mine, theirs in zip(inputs, exact, strict=True):
        assert float((mine.grad.double() - theirs.grad).norm() / theirs.grad.norm()) < 2e-2


def test_a_part_that_outweighs_the_other_by_far_is_all_there_is():
    """Log-sum-exps that lie 1,000 apart overflow nothing."""
    own, other = torch.full((2, 1, 4), 3.0), torch.full((2, 1, 4), 5.0)
    lse, other_lse = torch.tensor([[500.0, -500.0]]), torch.tensor([[-500.0, 500.0]])
    merge_attention(own, lse, other, other_lse, torch.arange(2))
    assert own[:, 0, 0].tolist() == [3.0, 5.0]


def test_gathering_sees_gradients():
    states = torch.randn(2, 9, 4, requires_grad=True)
    gather_keys(states, torch.tensor([3, 3, 8])).sum().backward()
    assert states.grad[0, :, 0].tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 1]
