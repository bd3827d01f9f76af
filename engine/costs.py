"""What a layer, a token and a job cost in FLOPs and bytes. Pure arithmetic on shapes; reads no weights.

Source of the FLOP counts: a multiply-add is 2 FLOPs; a linear layer costs 2 x its weights a token; attention
costs 4 x N x H a (token, visible key) pair. A trie token at position p sees p + 1 keys, or W under a sliding
window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedConfig

from strata.engine.checkpoint import Checkpoint
from strata.engine.layer_loader import LayerLoader
from strata.engine.model import Decoder


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """Costs of a checkpoint in a compute dtype.

    Attributes:
        stored_bytes: a layer, read from disk.
        buffer_bytes: a layer's reading buffer.
        weight_bytes: a layer in the compute dtype.
        converted_bytes: the part of `weight_bytes` that does not lie in the buffer.
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
        return max(attention, mlp) * self.itemsize

    def attention_scratch_bytes(self, rows: int, keys: int, *, on_cpu: bool) -> int:
        """Peak memory of one attention tile: scores on CPU, expanded keys and a mask on CUDA.

        Soft-capped scores, which SDPA does not know, are computed blockwise anywhere, with a float32 copy.
        """
        if on_cpu or self.has_softcap:
            return self.num_heads * rows * keys * (self.itemsize + (8 if self.has_softcap else self.itemsize))
        return 2 * self.num_heads * keys * self.head_dim * self.itemsize + 2 * rows * keys


def model_costs(
    checkpoint: Checkpoint, decoder: Decoder, loader: LayerLoader, dtype: torch.dtype
) -> ModelCosts:
    """Costs of a checkpoint, from its headers and its config."""
    config = checkpoint.config
    layers = range(checkpoint.num_layers)
    shapes = [decoder.layer_shapes(layer) for layer in layers]
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return ModelCosts(
        stored_bytes=tuple(loader.stored_bytes(layer) for layer in layers),
        buffer_bytes=tuple(loader.buffer_bytes(layer) for layer in layers),
        weight_bytes=tuple(_elements(shape) * dtype.itemsize for shape in shapes),
        converted_bytes=tuple(loader.converted_bytes(layer) for layer in layers),
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


def _elements(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _active_weights(shapes: dict[str, tuple[int, ...]], config: PreTrainedConfig) -> int:
    """Weights of matrices that a token meets; of E stacked experts [E, ...] it meets top-k."""
    active = 0.0
    for shape in shapes.values():
        if len(shape) == 2:
            active += torch.Size(shape).numel()
        elif len(shape) == 3:
            active += torch.Size(shape).numel() * config.num_experts_per_tok / shape[0]
    return int(active)
