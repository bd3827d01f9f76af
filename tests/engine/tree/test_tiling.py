"""Attention tiles against a dense visibility mask, built by walking a trie from each row up to its root."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.engine.tree.lanes import MicroBatch, segments_of
from strata.engine.tree.prefix_tree import build_prefix_tree
from strata.engine.tree.tiles import WASTE_LIMIT, build_scored_tiles, build_tiles
from strata.kernels.prefix_attention.tile import Tile, TileCut

from .test_packing import Packed, in_order, packed_trees
from .test_prefix_tree import ancestors

CPU = torch.device("cpu")
quick = settings(deadline=None, max_examples=60)
cuts = st.builds(TileCut, max_rows=st.sampled_from((1, 2, 3, 5, 8, 64)), joins=st.booleans())
limited = st.builds(
    TileCut,
    max_rows=st.sampled_from((4, 64)),
    joins=st.just(True),
    joined_rows=st.sampled_from((2, 4)),
    joined_keys=st.sampled_from((1, 4, 12)),
    tile_scores=st.sampled_from((0, 8, 1_000)),
)
windows = st.sampled_from((None, 1, 2, 4, 9))


def joined(max_rows: int) -> TileCut:
    return TileCut(max_rows=max_rows, joins=True)


def batches_of(packed: Packed) -> list[MicroBatch]:
    return [batch for lane in packed.lanes for batch in lane.micro_batches]


def expected_mask(packed: Packed, batch: MicroBatch, rows: list[int], window: int | None) -> np.ndarray:
    """[rows, key space] bool: an ancestor, or the row itself, fewer than `window` positions up."""
    keys = in_order(batch.key_space)
    mask = np.zeros((len(rows), len(keys)), bool)
    for index, row in enumerate(rows):
        visible = set(ancestors(packed.nodes, row)[slice(0 if window is None else -window, None)])
        mask[index] = [key in visible for key in keys]
    return mask


def mask_of_tiles(tiles: tuple[Tile, ...], num_rows: int, num_keys: int) -> np.ndarray:
    """[rows, key space] int: how often a row meets a key it sees, over all tiles."""
    mask = np.zeros((num_rows, num_keys), int)
    for tile in tiles:
        rows, keys = slice(*tile.rows), in_order(tile.key_ranges)
        visible = np.ones((tile.num_rows, tile.num_keys), bool)
        if tile.num_masked:
            visible[:, tile.num_unmasked :] = tile.visible_mask(CPU).numpy()
        np.add.at(mask[rows], (slice(None), keys), visible)
    return mask


@quick
@given(packed_trees(), st.one_of(cuts, limited), windows)
def test_tiles_show_each_row_what_it_sees_once(packed, cut, window):
    for batch in batches_of(packed):
        tiles = build_tiles(packed.tree, batch, cut, window)
        expected = expected_mask(packed, batch, in_order(batch.rows), window)
        np.testing.assert_array_equal(mask_of_tiles(tiles, *expected.shape), expected)


@quick
@given(packed_trees(), cuts, windows)
def test_scored_tiles_show_scored_rows_what_they_see_once(packed, cut, window):
    for batch in batches_of(packed):
        tiles = build_scored_tiles(packed.tree, batch, cut, window)
        scored = [in_order(batch.rows)[row] for row in batch.scored_rows.tolist()]
        expected = expected_mask(packed, batch, scored, window)
        np.testing.assert_array_equal(mask_of_tiles(tiles, *expected.shape), expected)
        assert [row for tile in tiles for row in range(*tile.rows)] == list(range(len(scored)))
        assert all(tile.num_rows <= cut.max_rows for tile in tiles)


@quick
@given(packed_trees(), st.one_of(cuts, limited), windows)
def test_tiles_are_well_formed(packed, cut, window):
    for batch in batches_of(packed):
        tiles = build_tiles(packed.tree, batch, cut, window)
        assert [row for tile in tiles for row in range(*tile.rows)] == list(range(batch.num_rows))
        for tile in tiles:
            keys = in_order(tile.key_ranges)
            assert 0 < tile.num_rows <= cut.max_rows
            assert len(keys) == len(set(keys)) == tile.num_keys
            assert 0 <= tile.num_unmasked <= tile.num_keys
            if tile.causal:
                own = [batch.num_carried + row for row in range(*tile.rows)]
                assert keys[-tile.num_rows :] == own
                assert keys[tile.num_unmasked :] == (own if tile.window is None else keys)
            assert (tile.visible is None) == (tile.causal or tile.num_masked == 0)


@quick
@given(packed_trees(), cuts, windows)
def test_mask_bits_are_packed_and_needed(packed, cut, window):
    """A key takes a bit; one from before the tile carries a mask only if some row does not see it."""
    for batch in batches_of(packed):
        for tile in build_tiles(packed.tree, batch, cut, window):
            if tile.visible is None:
                continue
            assert tile.visible.dtype == np.uint8
            assert tile.visible.shape == (tile.num_rows, -(-tile.num_masked // 8))
            visible = tile.visible_mask(CPU)
            assert visible.dtype == torch.bool
            own = {batch.num_carried + row for row in range(*tile.rows)}
            masked = in_order(tile.key_ranges)[tile.num_unmasked :]
            seen_by_all = visible.all(dim=0).tolist()
            assert {key for key, seen in zip(masked, seen_by_all, strict=True) if seen} <= own


@quick
@given(packed_trees(), limited)
def test_joined_tiles_keep_their_limits_and_others_are_sequences(packed, cut):
    for batch in batches_of(packed):
        for tile in build_tiles(packed.tree, batch, cut):
            if not tile.is_sequence:
                assert tile.num_rows <= cut.joined_rows
                assert tile.num_keys <= cut.joined_keys


@quick
@given(packed_trees())
def test_what_a_tile_costs_is_spent_on_joining(packed):
    """Where a tile more costs a lot, tiles are only as many as their rows need."""
    cut = TileCut(max_rows=64, joins=True, joined_rows=4, tile_scores=1_000_000)
    for batch in batches_of(packed):
        tiles = build_tiles(packed.tree, batch, cut)
        for one, following in pairwise(tiles):
            first = next(
                part for part in segments_of(packed.tree, batch.rows) if part.row == following.rows[0]
            )
            assert one.num_rows + first.end - first.start > 4


@quick
@given(packed_trees(), cuts)
def test_a_tile_gathers_no_key_in_vain_and_wastes_little(packed, cut):
    for batch in batches_of(packed):
        expected = expected_mask(packed, batch, in_order(batch.rows), None)
        segments = segments_of(packed.tree, batch.rows)
        for tile in build_tiles(packed.tree, batch, cut):
            first, last = tile.rows
            assert expected[first:last, in_order(tile.key_ranges)].any(axis=0).all()
            apart = 0
            for part in segments:
                low, high = max(first, part.row), min(last, part.row + part.end - part.start)
                if low < high:
                    depth = packed.nodes[part.start + high - 1 - part.row].depth
                    apart += (high - low) * (depth + 1)
            assert tile.num_rows * tile.num_keys <= WASTE_LIMIT * apart


@quick
@given(packed_trees(), st.sampled_from((None, 3)), windows)
def test_apart_every_tile_is_a_sequence_without_a_mask(packed, max_rows, window):
    cut = TileCut(max_rows=max_rows, joins=False)
    for batch in batches_of(packed):
        for build, num_rows in ((build_tiles, batch.num_rows), (build_scored_tiles, len(batch.scored_rows))):
            tiles = build(packed.tree, batch, cut, window)
            assert all(tile.is_sequence and tile.visible is None for tile in tiles)
            assert [row for tile in tiles for row in range(*tile.rows)] == list(range(num_rows))
        if max_rows is None:
            whole = segments_of(packed.tree, batch.rows)
            assert len(build_tiles(packed.tree, batch, cut, window)) == len(whole)


def test_scored_rows_that_follow_one_another_are_one_sequence():
    """Else each of an option's tokens would gather the prefix anew."""
    tree, batch = whole_batch([[*range(9), 40, 41, 42], [*range(9), 50, 51]])
    batch = replace(batch, scored_rows=np.array([3, 9, 10, 11, 13]))
    tiles = build_scored_tiles(tree, batch, TileCut(max_rows=None, joins=False))
    assert [tile.rows for tile in tiles] == [(0, 1), (1, 4), (4, 5)]
    assert [tile.num_keys for tile in tiles] == [4, 12, 11]


def whole_batch(sequences: list[list[int]]) -> tuple:
    """A tree and one micro-batch that holds all of it."""
    tree = build_prefix_tree([np.array(sequence) for sequence in sequences])
    batch = MicroBatch(
        rows=((0, tree.num_tokens),),
        carried=(),
        first_row=0,
        num_rows=tree.num_tokens,
        scored_rows=np.arange(0),
        kept=(),
    )
    return tree, batch


def test_a_long_prefix_makes_causal_tiles_without_masks():
    tree, batch = whole_batch([list(range(300))])
    tiles = build_tiles(tree, batch, joined(128))
    assert [tile.rows for tile in tiles] == [(0, 128), (128, 256), (256, 300)]
    assert [tile.num_unmasked for tile in tiles] == [0, 128, 256]
    assert [tile.key_ranges for tile in tiles] == [((0, 128),), ((0, 256),), ((0, 300),)]
    assert all(tile.causal and tile.visible is None for tile in tiles)


def test_a_window_drops_the_keys_behind_it():
    tree, batch = whole_batch([list(range(300))])
    tiles = build_tiles(tree, batch, joined(100), window=100)
    assert [tile.key_ranges for tile in tiles] == [((0, 100),), ((1, 200),), ((101, 300),)]
    assert [tile.causal for tile in tiles] == [True, False, False]


def test_short_branches_share_a_tile_and_long_ones_do_not():
    short = [[*range(100), 200 + option, 7] for option in range(5)]
    tree, batch = whole_batch(short)
    shared = build_tiles(tree, batch, joined(128))[-1]
    # The prefix and the first branch are one run of 102 tokens, then come four branches of two.
    assert shared.num_rows >= 8
    assert shared.num_unmasked <= 100
    assert not shared.causal
    tree, batch = whole_batch([[7, *range(100 + option, 150 + option)] for option in range(3)])
    assert [tile.num_rows for tile in build_tiles(tree, batch, joined(128))] == [51, 50, 50]


def test_no_scored_rows_no_tiles():
    tree, batch = whole_batch([[1, 2]])
    assert build_scored_tiles(tree, batch, joined(4)) == ()
