"""The first layer and the final norm on real weights, computed the plain way: what the probe is held against.

Data flow: config cut to one layer -> transformers' own base model, eager attention, float32 -> its weights,
read by the safetensors library and decoded one by one -> token_ids [L] in one pass -> readouts [L, D].
Shares with the sweep which file and name a weight has, and how quantised weights are decoded; neither
reading, buffers, threads, devices, packing, routes nor attention.
Peak memory: one layer in float32.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel

from strata.engine.adapters.lora import Adapter, merge
from strata.engine.model.decoder import assign_weights
from strata.engine.model_files.empty_model import empty_model
from strata.engine.weights.checkpoint import Checkpoint, WeightSource
from strata.engine.weights.first_layers import keep_layers
from strata.engine.weights.formats.stored_weight import PlainWeight, StoredWeight
from strata.engine.weights.gguf.model_file import SUFFIX
from strata.engine.weights.safetensors_file import StoredTensor
from strata.engine.weights.stored_rows import StoredRows

EMBEDDING = "embed_tokens.weight"


@torch.inference_mode()
def first_layer_readouts(
    checkpoint: Checkpoint, token_ids: np.ndarray, adapter: Adapter | None = None, *, normalizes: bool = True
) -> torch.Tensor:
    """Hidden states [L, D] float32 after the first layer alone and the final norm.

    Args:
        checkpoint: whose weights.
        token_ids: [L] of one path.
        adapter: applied to the layer.
        normalizes: False leaves the final norm out.
    """
    model = _one_layer_model(checkpoint)
    used, rows = np.unique(token_ids, return_inverse=True)
    embedding = _rows(checkpoint.require_rows(EMBEDDING), used)
    assign_weights(model.get_submodule("embed_tokens"), {"weight": embedding})
    if normalizes:
        _load(model.get_submodule("norm"), checkpoint, "norm.")
    else:
        model.norm = nn.Identity()
    _load(model.get_submodule("layers.0"), checkpoint, "layers.0.", adapter)
    return model(input_ids=torch.from_numpy(rows)[None], use_cache=False).last_hidden_state[0]


def projection_rows(checkpoint: Checkpoint, token_ids: np.ndarray) -> torch.Tensor:
    """Rows [n, D] float32 of the vocabulary projection.

    Args:
        checkpoint: a causal language model's.
        token_ids: [n] ascending.
    """
    assert checkpoint.output_embedding is not None
    return _rows(checkpoint.require_rows(checkpoint.output_embedding), token_ids)


def _one_layer_model(checkpoint: Checkpoint) -> nn.Module:
    config = keep_layers(checkpoint, 1).config
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    with empty_model():
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.embed_tokens.padding_idx = None
    return model.eval()


def _load(module: nn.Module, checkpoint: Checkpoint, prefix: str, adapter: Adapter | None = None) -> None:
    for name in module.state_dict():
        weight = _dense(checkpoint.require(prefix + name), checkpoint)
        lora = adapter.layers[0].get(name.removesuffix(".weight")) if adapter else None
        assign_weights(module, {name: weight if lora is None else merge(weight, lora, out=weight)})


def _dense(source: WeightSource, checkpoint: Checkpoint) -> torch.Tensor:
    """A weight in float32."""
    return source.combine([_decode(weight) for weight, _ in source.parts], checkpoint.config).float()


def _decode(weight: StoredWeight) -> torch.Tensor:
    tensors = {role: _read(stored) for role, stored in weight.parts.items()}
    if isinstance(weight, PlainWeight):
        return tensors["weight"].float()
    return weight.decode(tensors, torch.empty(weight.shape, dtype=torch.float32))


def _read(stored: StoredTensor) -> torch.Tensor:
    if stored.file.suffix == SUFFIX:
        raw = np.memmap(stored.file, np.uint8, "r", stored.offset, (stored.num_bytes,))
        return torch.from_numpy(np.array(raw)).view(stored.torch_dtype).view(stored.shape)
    with safe_open(stored.file, "pt") as file:
        return file.get_tensor(stored.name)


def _rows(rows: StoredRows, ids: np.ndarray) -> torch.Tensor:
    """Rows [n, D] float32."""
    raw = _read(rows.tensor)[torch.from_numpy(ids).long()]
    if isinstance(rows.weight, PlainWeight):
        return raw.float()
    return rows.weight.decode({rows.role: raw}, torch.empty(len(ids), *rows.shape[1:]))
