"""A checkpoint cut to its first K layers: what a head at layer K needs, and nothing of what lies beyond.

The result is a checkpoint like any other, so that planning, sweeping and packing need not know. Independent
check: transformers with `num_hidden_layers=K` (tests/engine/test_layers.py).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.stored_checkpoint import LAYER_NAME


def count_layers(layers: float, num_layers: int) -> int:
    """What --layers means for a model: a number of layers, or a share of them, rounded, at least one.

    Raises:
        InputError: no such number; names the flag and the model's layers.
    """
    if 0 < layers < 1:
        return max(1, round(layers * num_layers))
    if 1 <= layers <= num_layers and layers == int(layers):
        return int(layers)
    raise InputError(
        f"--layers {layers:g}: the model has {num_layers} layers; expected a whole number from 1 to "
        f"{num_layers}, or a share between 0 and 1"
    )


def keep_layers(checkpoint: Checkpoint, num_layers: int) -> Checkpoint:
    """The checkpoint without its layers from number `num_layers` on; the given one is left as it is."""
    weights = {
        name: source
        for name, source in checkpoint.weights.items()
        if not (layer := LAYER_NAME.match(name)) or int(layer[1]) < num_layers
    }
    config: PreTrainedConfig = copy.deepcopy(checkpoint.config)
    for name, value in cut_settings(vars(checkpoint.config), num_layers).items():
        setattr(config, name, value)
    return replace(checkpoint, config=config, weights=weights)


def cut_settings(settings: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """The settings of a model's config that differ when it has so many layers: the number, lists by layer."""
    total = settings["num_hidden_layers"]
    by_layer = {
        name: value[:num_layers]
        for name, value in settings.items()
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == total
    }
    return by_layer | {"num_hidden_layers": num_layers}


def is_beyond(stored_name: str, num_layers: int) -> bool:
    """Whether a tensor, by its name in the file, belongs to a layer from number `num_layers` on."""
    layer = LAYER_NAME.search(stored_name)
    return layer is not None and int(layer[1]) >= num_layers
