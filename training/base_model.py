"""The checkpoint that a run trains on, cut to its first layers where --layers says so. Reads headers only."""

from __future__ import annotations

from strata.engine.weights.checkpoint import Checkpoint, open_checkpoint
from strata.engine.weights.first_layers import count_layers, keep_layers
from strata.training.config import TrainConfig


def open_base(config: TrainConfig) -> Checkpoint:
    """Opens the checkpoint of a run.

    Raises:
        InputError: no such checkpoint, or no such layer.
    """
    checkpoint = open_checkpoint(config.model)
    if config.layers is None:
        return checkpoint
    return keep_layers(checkpoint, count_layers(config.layers, checkpoint.num_layers))
