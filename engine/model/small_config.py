"""A small model of a family: its config with narrow matrices, a short window and few layers, all else kept.

What a layer does hangs on its kind, not on its widths; so one layer of every kind of the small model stands
for those of the real one. Knows no weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from strata.engine.weights.first_layers import cut_settings

HIDDEN, FEED_FORWARD, VOCABULARY, WINDOW = 64, 32, 97, 4
MOST_HEADS = 2

WIDTHS = {
    "intermediate_size": FEED_FORWARD,
    "moe_intermediate_size": FEED_FORWARD,
    "shared_expert_intermediate_size": FEED_FORWARD,
    "ffn_dim": FEED_FORWARD,
    "ffn_hidden_size": FEED_FORWARD,
    "mlp_hidden_size": FEED_FORWARD,
    "vocab_size": VOCABULARY,
    "sliding_window": WINDOW,
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


LayerKind = tuple[object, ...]


def layer_kind(layer: nn.Module) -> LayerKind:
    """What tells a layer's kind: its modules' classes, plain settings and the shapes of their weights."""
    kind: list[object] = []
    for name, module in layer.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str)) and key not in ("layer_idx", "layer_id", "training")
        }
        shapes = [(key, tuple(weight.shape)) for key, weight in module.named_parameters(recurse=False)]
        kind.append((name, type(module).__name__, tuple(sorted(settings.items())), tuple(shapes)))
    return tuple(kind)


def layer_kinds(layers: Sequence[nn.Module], layer_types: Sequence[str] | None) -> list[LayerKind]:
    """The kind of every layer: its type, as the config says, and what its modules are."""
    types: Sequence[str | None] = layer_types or [None] * len(layers)
    return [(kind, layer_kind(layer)) for layer, kind in zip(layers, types, strict=True)]


def first_of_every_kind(kinds: Sequence[LayerKind]) -> int:
    """How many leading layers hold one of every kind, at least two where there are as many."""
    return max(min(2, len(kinds)), 1 + max(kinds.index(kind) for kind in set(kinds)))


def shrink_config(config: PreTrainedConfig, num_layers: int, *, is_narrow: bool) -> PreTrainedConfig:
    """A copy of a decoder's config with narrow matrices and its first layers only.

    Args:
        config: of the real model.
        num_layers: how many of its layers to keep.
        is_narrow: hidden states may be narrower than all heads together.
    """
    small = copy.deepcopy(config)
    for name, value in cut_settings(vars(config), num_layers).items():
        setattr(small, name, value)
    _shrink_heads(small, is_narrow=is_narrow)
    for name, width in WIDTHS.items():
        _set_smaller(small, name, width)
    _shrink_experts(small)
    for name in TOKEN_IDS:
        _set_smaller(small, name, VOCABULARY - 1)
    return small


def _shrink_heads(small: PreTrainedConfig, *, is_narrow: bool) -> None:
    num_heads = small.num_attention_heads
    num_kv_heads = getattr(small, "num_key_value_heads", None) or num_heads
    if not isinstance(num_heads, int) or not isinstance(num_kv_heads, int):
        return
    head_dim = getattr(small, "head_dim", None)
    kept_kv = min(num_kv_heads, MOST_HEADS)
    kept = kept_kv * min(num_heads // num_kv_heads, MOST_HEADS)
    wide = kept * (head_dim or small.hidden_size // num_heads)
    width = HIDDEN if head_dim and is_narrow else wide
    small.num_attention_heads = kept
    if getattr(small, "num_key_value_heads", None) is not None:
        small.num_key_value_heads = kept_kv
    if small.hidden_size > width:
        small.hidden_size = width


def _shrink_experts(small: PreTrainedConfig) -> None:
    chosen = max((getattr(small, name, None) or 0 for name in CHOSEN_EXPERTS), default=0)
    for name in EXPERTS:
        groups = getattr(small, "n_group", None) or 1
        if isinstance(getattr(small, name, None), int):
            _set_smaller(small, name, groups * max(2, -(-2 * chosen // groups)))


def _set_smaller(small: PreTrainedConfig, name: str, width: int) -> None:
    value: Any = getattr(small, name, None)
    if isinstance(value, int) and not isinstance(value, bool) and value > width:
        setattr(small, name, width)
    elif isinstance(value, (list, tuple)) and all(isinstance(each, int) for each in value):
        setattr(small, name, [min(each, width) for each in value])
