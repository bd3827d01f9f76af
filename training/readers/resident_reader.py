"""A decoder whose base weights stay on the device: packed forward, autograd backward, by micro-batches.

Flow of a micro-batch: tree tokens -> embeddings [T, D] -> every layer -> scored rows -> final norm ->
readouts [S, D] -> loss -> backward. Gradient checkpointing keeps only the hidden states between layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint as checkpoint_layer

from strata.training.base_model import open_base
from strata.training.config import TrainConfig
from strata.training.loss_scale import scaled_backward
from strata.training.readers.decoder_pass import run_last_layer, run_layer
from strata.training.readers.decoder_reader import DecoderReader
from strata.training.readers.devices import choose_device
from strata.training.readers.packed_batch import PackedBatch
from strata.training.readers.seeds import micro_batch_seed
from strata.training.readers.trained_model import open_resident
from strata.training.tasks import count_units
from strata.training.types import Example


class ResidentReader(DecoderReader):
    """A `Reader` with all weights on one device."""

    def add_gradients(self, batch: Sequence[Example], seed: int, scale: float) -> float:
        """Adds the gradient of the batch's mean loss times a scale; returns that loss."""
        num_units = count_units(self.config.task, batch)
        self.trained.dropout_on(True)
        total = 0.0
        for index, packed in enumerate(self.pack(batch)):
            readouts = self.read_out(packed, micro_batch_seed(seed, index))
            loss = self.loss_of(readouts, packed, num_units)
            scaled_backward(loss, scale)
            total += loss.item()
        self.trained.dropout_on(False)
        return total

    def score(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Scores of examples; see `Reader`."""
        with torch.no_grad():
            return [
                scores
                for packed in self.pack(examples)
                for scores in self.to_numpy(self.scores_of(self.read_out(packed, 0), packed))
            ]

    def read_out(self, packed: PackedBatch, seed: int) -> torch.Tensor:
        """Readouts [S, D] of a micro-batch, in the autograd graph."""
        decoder = self.trained.decoder
        hidden = decoder.embed_rows(packed.token_ids)
        last = len(decoder.layers) - 1
        for layer in range(last + 1):
            run = partial(run_last_layer if layer == last else run_layer, decoder, layer)
            if self.config.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint_layer(
                    run, hidden, packed, seed, use_reentrant=False, preserve_rng_state=False
                )
            else:
                hidden = run(hidden, packed, seed)
        return decoder.base.get_submodule("norm")(hidden)


def open_resident_reader(config: TrainConfig) -> ResidentReader:
    """Opens the model of a run.

    Raises:
        InputError: no such checkpoint or device, or a model that cannot be trained here.
    """
    device = choose_device(config)
    checkpoint = open_base(config)
    return ResidentReader(config, checkpoint, open_resident(config, checkpoint, device), device)
