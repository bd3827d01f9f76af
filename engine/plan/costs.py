"""What a layer, a token and a job cost in FLOPs and bytes. Pure arithmetic on shapes; reads no weights.

Source of the FLOP counts: a multiply-add is 2 FLOPs; a linear layer costs 2 x its weights a token; attention
costs 4 x N x H a (token, visible key) pair. A trie token at position p sees p + 1 keys, or W under a sliding
window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedConfig

from strata.engine.machine.rates import LinearKind
from strata.engine.model.decoder import Decoder
from strata.engine.model.weight_routes import LayerRoutes, Shapes

StorageFormat = Literal["fp16", "int8", "nf4"]
BYTES_PER_WEIGHT = {"fp16": 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""With scales where they count: NF4 has a byte a block of 64 and a float32 a 256 of these (double
quantisation; source: QLoRA, arXiv:2305.14314, section 3); int8 has a float32 a row, left out."""


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """Costs of a checkpoint in a compute dtype.

    Attributes:
        stored_bytes: a layer, read from disk.
        buffer_bytes: a layer's reading buffer.
        weight_bytes: a layer in the form it is computed with.
        converted_bytes: the part of `weight_bytes` that does not lie in the buffer.
        decode_weights: weights of a layer that each decode step meets: dtype or storage format (see
            MachineRates.decode_weights_per_s) -> count.
        scratch_bytes: for one weight on its way through two decode steps.
        linear: how linear layers are computed.
        linear_weights: active weights of a layer's matrices, a token.
        key_value_weights: of these, the ones that make keys and values.
        windows: sliding window of each layer, None for full attention.
    """

    stored_bytes: tuple[int, ...]
    buffer_bytes: tuple[int, ...]
    weight_bytes: tuple[int, ...]
    converted_bytes: tuple[int, ...]
    linear_weights: tuple[int, ...]
    key_value_weights: int
    windows: tuple[int | None, ...]
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    itemsize: int
    has_softcap: bool
    decode_weights: tuple[Mapping[str, int], ...]
    scratch_bytes: int = 0
    linear: LinearKind = "dense"

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.stored_bytes)

    @property
    def key_value_bytes_per_token(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.num_kv_heads * self.head_dim * self.itemsize

    @property
    def activation_bytes_per_token(self) -> int:
        """Peak intermediate tensors of one token inside a layer: the wider of attention and MLP."""
        heads = self.num_heads * self.head_dim
        key_values = 2 * self.num_kv_heads * self.head_dim
        attention = 3 * self.hidden_size + 6 * heads + 4 * key_values
        mlp = 3 * self.hidden_size + 4 * self.intermediate_size
        dense = max(attention, mlp) * self.itemsize
        if self.linear == "dense":
            return dense
        # Codes of the widest input, and a product in int32 before it is scaled.
        widest = max(self.hidden_size, heads, self.intermediate_size)
        return dense + widest * (1 + 4)


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """What the weights of one layer take, and what is done to them; see ModelCosts for the same names."""

    shapes: Shapes
    stored_bytes: int
    buffer_bytes: int
    weight_bytes: int
    converted_bytes: int
    scratch_bytes: int = 0
    decode_weights: Mapping[str, int]


def model_costs(config: PreTrainedConfig, routes: Sequence[LayerRoutes], dtype: torch.dtype) -> ModelCosts:
    """Costs of a checkpoint, from its config and what is done to its weights.

    Args:
        config: the checkpoint's.
        routes: of each layer's weights.
        dtype: of activations.
    """
    has_int8 = any(route.to_int8 for layer in routes for route in layer.weights.values())
    return _costs_of_layers(
        config, [_weights_of(layer) for layer in routes], dtype, "int8" if has_int8 else "dense"
    )


def shape_costs(
    config: PreTrainedConfig, decoder: Decoder, storage: StorageFormat, dtype: torch.dtype, linear: LinearKind
) -> ModelCosts:
    """Costs of a model that is not there, as if its matrices were stored in a format, the rest in `dtype`.

    Args:
        config: the model's.
        decoder: its modules, not quantised.
        storage: of the matrices.
        dtype: of activations.
        linear: how linear layers are computed.
    """
    shapes = [decoder.layer_shapes(layer) for layer in range(config.num_hidden_layers)]
    weights = [_weights_as_if(shape, storage, dtype, linear) for shape in shapes]
    return _costs_of_layers(config, weights, dtype, linear)


def _weights_of(layer: LayerRoutes) -> LayerWeights:
    return LayerWeights(
        shapes={name: route.shape for name, route in layer.weights.items()},
        stored_bytes=layer.stored_bytes,
        buffer_bytes=layer.buffer_bytes,
        weight_bytes=layer.weight_bytes,
        converted_bytes=layer.converted_bytes,
        scratch_bytes=layer.scratch_bytes,
        decode_weights=layer.decode_weights,
    )


def _weights_as_if(
    shapes: Shapes, storage: StorageFormat, dtype: torch.dtype, linear: LinearKind
) -> LayerWeights:
    stored = _shape_bytes(shapes, dtype, BYTES_PER_WEIGHT[storage])
    as_is = storage == ("fp16" if linear == "dense" else "int8")
    computed_itemsize = 1 if linear == "int8" else dtype.itemsize
    return LayerWeights(
        shapes=shapes,
        stored_bytes=stored,
        buffer_bytes=stored,
        weight_bytes=_shape_bytes(shapes, dtype, BYTES_PER_WEIGHT["int8" if linear == "int8" else "fp16"]),
        converted_bytes=0 if as_is else _matrix_elements(shapes) * computed_itemsize,
        decode_weights=_shape_decode_weights(shapes, storage, linear),
    )


def _costs_of_layers(
    config: PreTrainedConfig, layers: Sequence[LayerWeights], dtype: torch.dtype, linear: LinearKind
) -> ModelCosts:
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return ModelCosts(
        stored_bytes=tuple(layer.stored_bytes for layer in layers),
        buffer_bytes=tuple(layer.buffer_bytes for layer in layers),
        weight_bytes=tuple(layer.weight_bytes for layer in layers),
        converted_bytes=tuple(layer.converted_bytes for layer in layers),
        decode_weights=tuple(layer.decode_weights for layer in layers),
        scratch_bytes=max(layer.scratch_bytes for layer in layers),
        linear=linear,
        linear_weights=tuple(_active_weights(layer.shapes, config) for layer in layers),
        key_value_weights=2 * num_kv_heads * head_dim * config.hidden_size,
        windows=tuple(_window(config, layer) for layer in range(len(layers))),
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", 0) or 0,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        itemsize=dtype.itemsize,
        has_softcap=getattr(config, "attn_logit_softcapping", None) is not None,
    )


def sweep_flops(
    costs: ModelCosts,
    position_ids: np.ndarray,
    scored: np.ndarray,
    visible: Callable[[int | None], np.ndarray] | None = None,
) -> tuple[float, float]:
    """Useful FLOPs of a job's GEMMs and of its unmasked attention; the last layer counts scored tokens only.

    Args:
        costs: the model's.
        position_ids: [T] of every trie token.
        scored: [S] stream indexes that need queries and MLP in the last layer.
        visible: window -> keys [T] that every token sees; None where these are all positions up to its own.
    """
    tokens, num_scored = len(position_ids), len(scored)
    body = sum(costs.linear_weights[:-1]) * tokens
    last = (
        costs.key_value_weights * tokens + (costs.linear_weights[-1] - costs.key_value_weights) * num_scored
    )
    count = visible or (lambda window: positions_up_to(position_ids, window))
    keys = {window: count(window) for window in set(costs.windows)}
    totals = {window: int(found.sum()) for window, found in keys.items()}
    pairs = sum(totals[window] for window in costs.windows[:-1])
    pairs += int(keys[costs.windows[-1]][scored].sum())
    return 2.0 * (body + last), 4.0 * costs.num_heads * costs.head_dim * pairs


def positions_up_to(position_ids: np.ndarray, window: int | None) -> np.ndarray:
    """[T] int64, how many positions there are up to each token's own, and in the window."""
    visible = position_ids.astype(np.int64) + 1
    return visible if window is None else np.minimum(visible, window)


def visible_pairs(position_ids: np.ndarray, window: int | None) -> int:
    """(token, visible key) pairs of tokens at these positions of their branches."""
    return int(positions_up_to(position_ids, window).sum())


def _window(config: PreTrainedConfig, layer: int) -> int | None:
    layer_types = getattr(config, "layer_types", None)
    if layer_types and layer_types[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def _shape_decode_weights(shapes: Shapes, storage: StorageFormat, linear: LinearKind) -> dict[str, int]:
    steps: list[str] = [] if storage == "fp16" else [storage]
    if linear == "int8":
        steps = [] if storage == "int8" else [*steps, "quantize"]
    return {step: _matrix_elements(shapes) for step in steps}


def _shape_bytes(shapes: Shapes, dtype: torch.dtype, bytes_per_weight: float) -> int:
    elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    matrices = _matrix_elements(shapes)
    return int(matrices * bytes_per_weight) + (elements - matrices) * dtype.itemsize


def _matrix_elements(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values() if len(shape) > 1)


def _active_weights(shapes: Shapes, config: PreTrainedConfig) -> int:
    """Weights of matrices that a token meets; of E stacked experts [E, ...] it meets top-k."""
    active = 0.0
    for shape in shapes.values():
        if len(shape) == 2:
            active += torch.Size(shape).numel()
        elif len(shape) == 3:
            active += torch.Size(shape).numel() * config.num_experts_per_tok / shape[0]
    return int(active)
