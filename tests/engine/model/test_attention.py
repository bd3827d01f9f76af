"""The attention function that transformers' layers call: what it ignores, what it refuses, which window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from strata.engine.model.attention import AttentionCall, attend_prefix_tree
from strata.engine.model.families import (
    UnsupportedFamilyError,
)
from strata.engine.tree.lanes import MicroBatch
from strata.engine.tree.prefix_tree import build_prefix_tree
from strata.engine.tree.tiles import build_tiles
from strata.kernels.prefix_attention.tile import Tile, TileCut

EIGHT_ROWS = TileCut(max_rows=8, joins=True)


class Attention(nn.Module):
    """Names itself in messages."""


def attend(**settings: object) -> torch.Tensor:
    query, key_value = torch.ones(1, 2, 1, 4), torch.ones(1, 1, 1, 4)
    tree = build_prefix_tree([np.array([1])])
    batch = MicroBatch(rows=((0, 1),), carried=(), first_row=0, num_rows=1, scored_rows=np.arange(0), kept=())
    call = AttentionCall(
        tiles_of=lambda cut, window: build_tiles(tree, batch, EIGHT_ROWS, window), carried=None
    )
    value = settings.pop("value", key_value)
    return attend_prefix_tree(
        Attention(), query, key_value, value, None, 0.5, **({"attention_call": call} | settings)
    )[0]


def test_an_unknown_attention_setting_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="attention setting s_aux of Attention is not supported"):
        attend(s_aux=torch.ones(2))


@pytest.mark.parametrize("settings", [{}, {"s_aux": None}, {"use_cache": False, "is_causal": True}])
def test_settings_without_meaning_here_are_ignored(settings):
    torch.testing.assert_close(attend(**settings), torch.ones(1, 1, 2, 4))


@pytest.mark.parametrize(
    ("passed", "given", "used"), [(None, None, None), (None, 5, 5), (3, 5, 3), (3, None, 3)]
)
def test_the_window_transformers_passes_comes_before_the_calls_own(passed, given, used):
    asked: list[int | None] = []
    tile = Tile(rows=(0, 1), key_ranges=((0, 1),), num_keys=1, num_unmasked=1, causal=False, visible=None)
    call = AttentionCall(
        tiles_of=lambda cut, window: asked.append(window) or (tile,), carried=None, window=given
    )
    attend(attention_call=call, sliding_window=passed)
    assert asked == [used]


def test_attention_that_is_given_no_call_tells_whose_it_is():
    with pytest.raises(UnsupportedFamilyError, match=r"^Attention is not given the arguments that its layer"):
        attend(attention_call=None)


def test_values_of_another_width_than_keys_are_refused():
    with pytest.raises(UnsupportedFamilyError, match=r"^Attention has heads of 4 features for keys and 6 "):
        attend(value=torch.ones(1, 1, 1, 6))
