"""Tiles that are padded into few calls, against the float64 oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from strata.kernels.prefix_attention.flash_cpu import FlashOnCpu
from strata.kernels.prefix_attention.padded import CALL_SCORES, WASTE, attend_padded, pad_tiles
from strata.kernels.prefix_attention.tile import Tile

from .attention_work import NUM_KEYS, Work, make_tile, make_work, poisoned_memory

__all__ = ["poisoned_memory"]


def ragged_work(sizes: list[int], dtype: torch.dtype) -> Work:
    """Masked tiles of these numbers of rows."""
    rng = np.random.default_rng(1)
    work = make_work(sum(sizes), dtype)
    tiles: list[Tile] = []
    visible = torch.zeros(sum(sizes), NUM_KEYS, dtype=torch.bool)
    for size in sizes:
        start = tiles[-1].rows[1] if tiles else 0
        tile, seen = make_tile("masked", start, start + size, rng)
        keys = [key for first, last in tile.key_ranges for key in range(first, last)]
        visible[np.ix_(range(start, start + size), keys)] = torch.from_numpy(seen)
        tiles.append(tile)
    return replace(work, tiles=tuple(tiles), visible=visible)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [[1], [7, 8, 5, 6], [128, 1, 2, 127, 3]], ids=str)
def test_padded_tiles_agree_with_the_oracle(sizes: list[int], dtype: torch.dtype) -> None:
    work = ragged_work(sizes, dtype)
    attended = FlashOnCpu().attend(*work.inputs, work.tiles, work.settings())
    torch.testing.assert_close(attended.double(), work.oracle(), rtol=0, atol=2e-6)


def test_tiles_of_about_one_size_are_one_call_and_others_are_not() -> None:
    assert len(pad_tiles(ragged_work([30, 28, 33, 30, 29], torch.float32).tiles)) == 1
    apart = pad_tiles(ragged_work([1, 500], torch.float32).tiles)
    assert [padded.num_rows for padded in apart] == [1, 500]
    assert [padded.kept for padded in apart] == [None, None]


def test_no_call_wastes_more_than_it_may() -> None:
    work = ragged_work([3, 90, 17, 64, 1, 128, 40], torch.float32)
    calls = pad_tiles(work.tiles)
    assert sorted(row for call in calls for row in call.kept_rows.tolist()) == list(range(len(work.visible)))
    for call in calls:
        kept = torch.zeros(call.num_tiles * call.num_rows, dtype=torch.bool)
        kept[slice(None) if call.kept is None else call.kept] = True
        scores = int(kept.sum()) * 66
        assert call.num_tiles * call.num_rows * call.num_keys <= WASTE * scores + CALL_SCORES + 8 * len(kept)


def test_the_mask_says_which_row_sees_which_key_for_each_head_of_a_group() -> None:
    work = ragged_work([5, 4], torch.float32)
    (padded,) = pad_tiles(work.tiles)
    mask = padded.additive_mask(3, torch.bfloat16)
    assert mask.shape == (2, 1, 3 * 5, 72)
    assert mask.dtype == torch.bfloat16
    seen = (mask == 0).unflatten(2, (3, 5))[:, 0]
    for number, tile in enumerate(reversed(work.tiles)):
        expected = torch.ones(tile.num_rows, tile.num_keys, dtype=torch.bool)
        expected[:, tile.num_unmasked :] = tile.visible_mask(torch.device("cpu"))
        for head in range(3):
            assert torch.equal(seen[number, head, : tile.num_rows, : tile.num_keys], expected)
            assert not seen[number, head, : tile.num_rows, tile.num_keys :].any()
            assert seen[number, head, tile.num_rows :].all()


def test_one_call_computes_all_tiles_of_short_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "strata.kernels.prefix_attention.flash_cpu.attend_padded",
        lambda *args, **kwargs: (calls.append(1), attend_padded(*args, **kwargs)),
    )
    work = ragged_work([20] * 6, torch.float32)
    FlashOnCpu().attend(*work.inputs, work.tiles, work.settings())
    assert len(calls) == 1
