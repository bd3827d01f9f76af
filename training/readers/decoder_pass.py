"""A micro-batch through a decoder's layers with gradients; the same for resident and streamed weights.

Shapes: hidden_states [T, D] between layers, readouts [S, D] after the final norm. The last layer computes
keys and values of all rows, and the rest for the scored ones only. Dropout (LoRA's alone; the base model's is
off) is drawn from a seed of step, micro-batch and layer, so that a layer computed again repeats it.
Independent check: transformers + PEFT on every branch alone (tests/training/readers/test_gradients.py).
"""

from __future__ import annotations

import torch

from strata.engine.model.decoder import Decoder
from strata.training.readers.packed_batch import PackedBatch
from strata.training.readers.seeds import layer_seed, seeded


def run_layer(
    decoder: Decoder, layer: int, hidden_states: torch.Tensor, batch: PackedBatch, seed: int
) -> torch.Tensor:
    """hidden_states [T, D] through a layer whose weights are assigned."""
    with seeded(layer_seed(seed, layer), hidden_states.device):
        return decoder.run_layer(layer, hidden_states, batch.position_ids, batch.attention_call())


def run_last_layer(
    decoder: Decoder, layer: int, hidden_states: torch.Tensor, batch: PackedBatch, seed: int
) -> torch.Tensor:
    """hidden_states [T, D] -> those of the scored rows [S, D] after the last layer, before the final norm."""
    position_ids, scored = batch.position_ids, batch.scored_rows
    with seeded(layer_seed(seed, layer), hidden_states.device):
        if len(scored) == batch.num_tokens:
            return decoder.run_layer(layer, hidden_states, position_ids, batch.attention_call())
        keys = batch.attention_call("keys")
        key_values = decoder.run_layer_keys(layer, hidden_states, position_ids, keys)
        call = batch.attention_call("scored", key_values)
        return decoder.run_layer(layer, hidden_states[scored], position_ids[scored], call)
