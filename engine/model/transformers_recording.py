"""What transformers' own model computes with random weights, layer by layer: the other side of the rehearsal.

Eager attention, float32, one path of tokens at a time, no cache. Knows nothing of strata's decoder.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from strata.engine.model.families import UnsupportedFamilyError
from strata.engine.model_files.empty_model import empty_model

MAX_WEIGHTS = 100_000_000


@dataclass(kw_only=True, eq=False)
class Recording:
    """What transformers' model computed on one path of L tokens.

    Attributes:
        inputs: [L, D] by layer.
        outputs: [L, D] by layer.
        normalized: [L, D] after the final norm.
        logits: [L, V]; None for a model without a projection.
    """

    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    normalized: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def record(theirs: nn.Module, path: np.ndarray) -> Recording:
    """Runs transformers' model on one path [L] alone and keeps what goes in and out of its layers."""
    recording = Recording()
    hooks = []

    def keep(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        entering = args[0] if args else kwargs["hidden_states"]
        leaving = output[0] if isinstance(output, tuple) else output
        recording.inputs.append(entering[0].clone())
        recording.outputs.append(leaving.reshape(entering.shape)[0].clone())

    for layer in base_of(theirs).get_submodule("layers").children():
        hooks.append(layer.register_forward_hook(keep, with_kwargs=True))
    try:
        found = theirs(
            input_ids=torch.from_numpy(path).long()[None], use_cache=False, output_hidden_states=True
        )
    finally:
        for hook in hooks:
            hook.remove()
    recording.normalized = found.hidden_states[-1][0]
    recording.logits = found.logits[0] if hasattr(found, "logits") else None
    return recording


def random_model(config: PreTrainedConfig) -> nn.Module:
    """transformers' own model: matrices of unit gain, everything else moved off its neutral value."""
    mappings = (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING)
    found: Any = next(mapping[type(config)] for mapping in mappings if type(config) in mapping)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    config.dtype = torch.float32
    _require_small(found, config)
    model = found(config).eval().float()
    generator = torch.Generator().manual_seed(0)
    for _, weight in sorted(model.state_dict().items()):
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.copy_(noise * weight.shape[-1] ** -0.5)
        else:
            weight.add_(0.2 * noise)
    return model


def _require_small(model_class: type[nn.Module], config: PreTrainedConfig) -> None:
    """Raises UnsupportedFamilyError for a model that would take long, or much memory."""
    with empty_model():
        num_weights = sum(weight.numel() for weight in model_class(copy.deepcopy(config)).parameters())
    if num_weights > MAX_WEIGHTS:
        raise UnsupportedFamilyError(
            f"its layers cannot be rehearsed: even a small model of it has {num_weights} weights"
        )


def base_of(model: nn.Module) -> nn.Module:
    """The decoder in a model, or the model where it is one itself."""
    return model if hasattr(model, "layers") else model.get_decoder()  # type: ignore[operator]
