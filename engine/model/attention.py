"""The attention function that transformers' layers call: prefix attention over carried and new keys.

Knows no layer and no weights; what a call needs beside query, key and value comes in an AttentionCall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from strata.engine.model.families import UnsupportedFamilyError
from strata.kernels.prefix_attention.backend import AttentionRequest, AttentionSettings, Backend
from strata.kernels.prefix_attention.registry import choose_backend
from strata.kernels.prefix_attention.tile import Tile, TileCut


@dataclass(kw_only=True, eq=False)
class AttentionCall:
    """What one call of one layer's attention needs and leaves behind.

    Attributes:
        tiles_of: tiles of the query rows, as the backend that is chosen wants them.
        carried: keys and values [2, K, C, H] of the carried tokens, None when there are none.
        window: the sliding window of this layer where transformers does not pass it, else None.
        mode: "all" computes every row; "keys" only leaves `key_values`; "scored" attends with the rows given
            over `key_values` left by a "keys" call before.
        differentiable: attend with a backward pass, which training needs.
        backend: what computes it, None for the one that fits the device and the layer.
        key_values: [2, K, C, H], the key space, set by modes "all" and "keys".
    """

    tiles_of: TilesOf
    carried: torch.Tensor | None
    window: int | None = None
    mode: str = "all"
    differentiable: bool = False
    backend: Backend | None = None
    key_values: torch.Tensor | None = None


TilesOf = Callable[[TileCut, int | None], Sequence[Tile]]
"""(how to cut, sliding window or None for full attention) -> tiles of a micro-batch."""


def attend_prefix_tree(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attention_call: AttentionCall | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers' layers call: query [1, N, T, H] -> output [1, T, N, H].

    Raises:
        UnsupportedFamilyError: the family asks for something that prefix attention does not know, or its
            layer does not hand on what attention needs.
    """
    call = _require_known(module, key, value, attention_call, settings)
    if call.mode != "scored":
        call.key_values = _append_keys(call.carried, key[0], value[0])
    if call.mode == "keys":
        return query.new_zeros(()).expand(1, query.shape[2], query.shape[1], query.shape[3]), None
    assert call.key_values is not None, "scored rows attend to the keys of an earlier call"
    key_space, value_space = call.key_values
    window = sliding_window if sliding_window is not None else call.window
    backend = call.backend or choose_backend(
        AttentionRequest(
            device_type=query.device.type,
            has_softcap=softcap is not None,
            has_window=window is not None,
            needs_gradients=call.differentiable,
            dtype=key_space.dtype,
            head_dim=key_space.shape[-1],
            capability=_capability(query.device),
        )
    )
    tiles = call.tiles_of(backend.cut, window)
    wanted = AttentionSettings(scaling=scaling, softcap=softcap)
    attended = backend.attend(query[0].to(key_space.dtype), key_space, value_space, tiles, wanted)
    return attended.to(query.dtype)[None], None


IGNORED_SETTINGS = {
    "position_ids",
    "use_cache",
    "is_causal",
    "output_attentions",
    "cache_position",
    "position_bias",
}


def _require_known(
    module: nn.Module,
    key: torch.Tensor,
    value: torch.Tensor,
    call: AttentionCall | None,
    settings: Mapping[str, Any],
) -> AttentionCall:
    """The call, unless the family's attention is of a kind that is not known here."""
    unknown = [
        name for name, setting in settings.items() if setting is not None and name not in IGNORED_SETTINGS
    ]
    if unknown:
        raise UnsupportedFamilyError(
            f"attention setting {unknown[0]} of {type(module).__name__} is not supported"
        )
    if call is None:
        raise UnsupportedFamilyError(
            f"{type(module).__name__} is not given the arguments that its layer is called with"
        )
    if key.shape != value.shape:
        widths = f"{key.shape[-1]} features for keys and {value.shape[-1]} for values"
        raise UnsupportedFamilyError(f"{type(module).__name__} has heads of {widths}")
    return call


def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _append_keys(carried: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Key space [2, K, C + T, H] of carried ones [2, K, C, H] and new keys and values [K, T, H].

    Written where it stays: joining tensors that lie otherwise takes CUDA three times as long.
    """
    if carried is None and torch.is_grad_enabled() and key.requires_grad:
        return torch.stack((key, value))
    dtype = torch.promote_types(key.dtype, value.dtype)
    num_carried = 0 if carried is None else carried.shape[2]
    if carried is not None:
        dtype = torch.promote_types(dtype, carried.dtype)
    num_heads, num_new, head_dim = key.shape
    space = key.new_empty(2, num_heads, num_carried + num_new, head_dim, dtype=dtype)
    if carried is not None:
        space[:, :, :num_carried] = carried
    space[0, :, num_carried:], space[1, :, num_carried:] = key, value
    return space


ATTENTION_NAME = "strata_prefix"
