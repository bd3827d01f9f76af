"""What a layer, a token and a job cost in FLOPs and bytes. Pure arithmetic on shapes; reads no weights.

Source of the FLOP counts: a multiply-add is 2 FLOPs; a linear layer costs 2 x its weights a token; attention
costs 4 x N x H a (token, visible key) pair. A trie token at position p sees p + 1 keys, or W under a sliding
window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedConfig

from strata.engine.machine.rates import LinearKind
from strata.engine.model.decoder import Decoder
from strata.engine.model.layer_loader import LayerLoader, Shapes
from strata.engine.model.weight_routes import _decode_weights
from strata.engine.weights.checkpoint import Checkpoint

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


def model_costs(
    checkpoint: Checkpoint, decoder: Decoder, loader: LayerLoader, dtype: torch.dtype
) -> ModelCosts:
    """Costs of a checkpoint, from its headers and its config."""
    config = checkpoint.config
    layers = range(checkpoint.num_layers)
    return _costs_of_layers(
        config,
        [decoder.layer_shapes(layer) for layer in layers],
        dtype,
        "int8" if any(decoder.int8_names(layer) for layer in layers) else "dense",
        stored_bytes=tuple(loader.stored_bytes(layer) for layer in layers),
        buffer_bytes=tuple(loader.buffer_bytes(layer) for layer in layers),
        weight_bytes=tuple(loader.weight_bytes(layer) for layer in layers),
        converted_bytes=tuple(loader.converted_bytes(layer) for layer in layers),
        decode_weights=tuple(_decode_weights(checkpoint, decoder, layer, dtype) for layer in layers),
        scratch_bytes=loader.scratch_bytes(),
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
    stored = tuple(_shape_bytes(shape, dtype, BYTES_PER_WEIGHT[storage]) for shape in shapes)
    as_is = storage == "fp16" if linear == "dense" else storage == "int8"
    return _costs_of_layers(
        config,
        shapes,
        dtype,
        linear,
        stored_bytes=stored,
        buffer_bytes=stored,
        weight_bytes=tuple(
            _shape_bytes(shape, dtype, BYTES_PER_WEIGHT["int8" if linear == "int8" else "fp16"])
            for shape in shapes
        ),
        converted_bytes=tuple(
            0 if as_is else int(_matrix_elements(shape) * (1 if linear == "int8" else dtype.itemsize))
            for shape in shapes
        ),
        decode_weights=tuple(_shape_decode_weights(shape, storage, linear) for shape in shapes),
    )


def _costs_of_layers(
    config: PreTrainedConfig,
    shapes: Sequence[Shapes],
    dtype: torch.dtype,
    linear: LinearKind,
    *,
    stored_bytes: tuple[int, ...],
    buffer_bytes: tuple[int, ...],
    weight_bytes: tuple[int, ...],
    converted_bytes: tuple[int, ...],
    decode_weights: tuple[Mapping[str, int], ...],
    scratch_bytes: int = 0,
) -> ModelCosts:
    layers = range(len(shapes))
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return ModelCosts(
        stored_bytes=stored_bytes,
        buffer_bytes=buffer_bytes,
        weight_bytes=weight_bytes,
        converted_bytes=converted_bytes,
        decode_weights=decode_weights,
        scratch_bytes=scratch_bytes,
        linear=linear,
        linear_weights=tuple(_active_weights(shape, config) for shape in shapes),
        key_value_weights=2 * num_kv_heads * head_dim * config.hidden_size,
        windows=tuple(_window(config, layer) for layer in layers),
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", 0) or 0,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        itemsize=dtype.itemsize,
        has_softcap=getattr(config, "attn_logit_softcapping", None) is not None,
    )


def sweep_flops(costs: ModelCosts, position_ids: np.ndarray, scored: np.ndarray) -> tuple[float, float]:
    """Useful FLOPs of a job's GEMMs and of its unmasked attention; the last layer counts scored tokens only.

    Args:
        costs: the model's.
        position_ids: [T] of every trie token.
        scored: [S] stream indexes that need queries and MLP in the last layer.
    """
    tokens, num_scored = len(position_ids), len(scored)
    body = sum(costs.linear_weights[:-1]) * tokens
    last = (
        costs.key_value_weights * tokens + (costs.linear_weights[-1] - costs.key_value_weights) * num_scored
    )
    pairs = sum(visible_pairs(position_ids, window) for window in costs.windows[:-1])
    pairs += visible_pairs(position_ids[scored], costs.windows[-1])
    return 2.0 * (body + last), 4.0 * costs.num_heads * costs.head_dim * pairs


def visible_pairs(position_ids: np.ndarray, window: int | None) -> int:
    """(token, visible key) pairs of tokens at these positions of their branches."""
    visible = position_ids.astype(np.int64) + 1
    return int(visible.sum() if window is None else np.minimum(visible, window).sum())


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
