"""A decoder whose base weights are never resident: a forward sweep and a backward sweep a step.

Flow of a step over M micro-batches and L layers, weights read twice:
    forward   layer 0 .. L-2: take weights; every micro-batch's hidden states [T, D] -> next; the states that
              enter each layer (the *boundaries*) wait in a hidden store, [L * sum of T, D]
    turn      layer L-1: forward and loss and backward of it in one visit
    backward  layer L-2 .. 0: take weights; boundary -> the layer once more, with gradients -> its part of the
              adapter's gradients, and the gradient of its input
Adapter, head, their gradients and the optimizer stay resident. Weights come through the engine's LayerStream,
from any storage format. Independent check: gradients equal the resident reader's (tests).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from strata.engine.model.decoder import assign_weights, build_decoder
from strata.engine.model.embedding import read_embedding
from strata.engine.model.layer_loader import make_loader
from strata.engine.sweep.coordinator import Coordinator
from strata.engine.sweep.hidden_store import HiddenStore, StoreShape, make_store
from strata.engine.sweep.layer_stream import LayerStream, ReadingOrder
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.tensor_reader import TensorReader
from strata.training.base_model import open_base
from strata.training.config import TrainConfig
from strata.training.loss_scale import scaled_backward
from strata.training.readers.decoder_pass import run_last_layer, run_layer
from strata.training.readers.decoder_reader import DecoderReader
from strata.training.readers.devices import choose_device
from strata.training.readers.host_memory import map_large_blocks
from strata.training.readers.packed_batch import PackedBatch
from strata.training.readers.seeds import micro_batch_seed
from strata.training.readers.tail_linear import find_tail, gradient_only
from strata.training.readers.trained_model import TrainedModel, open_skeleton
from strata.training.tasks import count_units, trains_classifier
from strata.training.types import Example

NUM_SLOTS = 2


@dataclass(kw_only=True, eq=False)
class _Step:
    """Micro-batches of one sweep: their first row in a boundary store, and the states between two layers."""

    packed: list[PackedBatch]
    first_rows: list[int]
    states: list[torch.Tensor]

    @property
    def num_rows(self) -> int:
        return self.first_rows[-1] + self.packed[-1].num_tokens


class StreamedReader(DecoderReader):
    """A `Reader` that holds two layers of the base model at a time, whatever its size.

    Call `close` at the end: a thread reads ahead.
    """

    def __init__(
        self, config: TrainConfig, checkpoint: Checkpoint, trained: TrainedModel, device: torch.device
    ) -> None:
        super().__init__(config, checkpoint, trained, device)
        if device.type == "cpu" and config.memory_gib is not None:
            map_large_blocks()
        self.tensor_reader = TensorReader()
        self._coordinator = Coordinator()
        self._asked: deque[range] = deque()
        self._num_asked = 0
        plain = build_decoder(checkpoint.config, trained.dtype)
        self._loader = make_loader(checkpoint, plain, trained.dtype, self.tensor_reader, ())
        order = ReadingOrder(sweeps=self._sweeps(), num_slots=NUM_SLOTS)
        self.stream = LayerStream(self._loader, order, [device], self._coordinator)
        self._tails = [find_tail(layer) for layer in trained.decoder.layers]
        self._load_ends()
        self._coordinator.start(self.stream.read_all, "layer-reader")

    def add_gradients(self, batch: Sequence[Example], seed: int, scale: float) -> float:
        """Adds the gradient of the batch's mean loss times a scale; returns that loss."""
        num_units, last = count_units(self.config.task, batch), self.checkpoint.num_layers - 1
        forward, backward = self._ask(range(last + 1)), self._ask(range(last - 1, -1, -1))
        self.trained.dropout_on(True)
        step = self._embed(batch)
        boundaries = self._make_store(step.num_rows * last)
        for layer in range(last):
            with torch.no_grad(), self._weights(forward, layer):
                self._advance(step, layer, boundaries, seed)
        with self._weights(forward, last):
            losses = [
                self._turn(step, index, last, num_units, seed, scale) for index in range(len(step.packed))
            ]
        for layer in range(last - 1, -1, -1):
            with self._weights(backward, layer):
                self._retreat(step, layer, boundaries, seed)
        boundaries.close()
        self.trained.dropout_on(False)
        return sum(losses)

    def score(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Scores of examples, one sweep for all of them; see `Reader`."""
        last = self.checkpoint.num_layers - 1
        forward = self._ask(range(last + 1))
        scores: list[np.ndarray] = []
        with torch.no_grad():
            step = self._embed(examples)
            for layer in range(last):
                with self._weights(forward, layer):
                    self._advance(step, layer, None, 0)
            with self._weights(forward, last):
                for index, packed in enumerate(step.packed):
                    scores += self.to_numpy(self.scores_of(self._read_out(step, index, last, 0), packed))
        return scores

    def layer_bytes(self, layer: int) -> int:
        """Bytes read for a layer, each time it is needed."""
        return self._loader.stored_bytes(layer)

    def close(self) -> None:
        """Ends the reading thread."""
        self._coordinator.stop()
        self.stream.settle()

    def _sweeps(self) -> Iterator[range]:
        """The sweeps asked for, as they are asked for; runs in the reading thread."""
        while True:
            self._coordinator.wait_for(lambda: bool(self._asked))
            yield self._asked.popleft()

    def _ask(self, layers: range) -> int:
        """Queues a sweep; returns its number."""
        self._coordinator.update(lambda: self._asked.append(layers))
        self._num_asked += 1
        return self._num_asked - 1

    @contextmanager
    def _weights(self, sweep: int, layer: int) -> Iterator[None]:
        """A layer's base weights in its modules for the length of the block."""
        try:
            weights = self.stream.take(sweep, layer, self.device)
        except BaseException:
            self._coordinator.raise_failure()
            raise
        module = self.trained.decoder.layers[layer]
        placeholders = assign_base(module, weights)
        yield
        assign_base(module, placeholders)
        self.stream.give_back(sweep, layer, self.device)

    def _embed(self, examples: Sequence[Example]) -> _Step:
        packed = self.pack(examples)
        used = np.unique(np.concatenate([one.tree.token_ids for one in packed]))
        table, row_of_token = read_embedding(self.checkpoint, used, self.tensor_reader)
        table = table.to(self.device, self.dtype)
        rows = [torch.from_numpy(row_of_token[one.tree.token_ids]).to(self.device) for one in packed]
        first_rows = np.cumsum([0, *(one.num_tokens for one in packed[:-1])]).tolist()
        with torch.no_grad():
            states = [self.trained.decoder.embed(table, table_rows) for table_rows in rows]
        return _Step(packed=packed, first_rows=first_rows, states=states)

    def _advance(self, step: _Step, layer: int, boundaries: HiddenStore | None, seed: int) -> None:
        """Every micro-batch through a layer without gradients; what enters it is kept."""
        for index, packed in enumerate(step.packed):
            if boundaries is not None:
                boundaries.write(layer * step.num_rows + step.first_rows[index], step.states[index])
            state, batch_seed = step.states[index], micro_batch_seed(seed, index)
            step.states[index] = run_layer(self.trained.decoder, layer, state, packed, batch_seed)

    def _turn(self, step: _Step, index: int, last: int, num_units: float, seed: int, scale: float) -> float:
        """A micro-batch through the last layer and back; its state becomes the gradient of what entered."""
        entering = step.states[index] = step.states[index].detach().requires_grad_()
        loss = self.loss_of(self._read_out(step, index, last, seed), step.packed[index], num_units)
        scaled_backward(loss, scale)
        assert entering.grad is not None
        step.states[index] = entering.grad
        return loss.item()

    def _read_out(self, step: _Step, index: int, last: int, seed: int) -> torch.Tensor:
        decoder, batch_seed = self.trained.decoder, micro_batch_seed(seed, index)
        scored = run_last_layer(decoder, last, step.states[index], step.packed[index], batch_seed)
        return decoder.base.get_submodule("norm")(scored)

    def _retreat(self, step: _Step, layer: int, boundaries: HiddenStore, seed: int) -> None:
        """Every micro-batch through a layer again, and the gradient of its output back through it."""
        for index, packed in enumerate(step.packed):
            first = layer * step.num_rows + step.first_rows[index]
            entering = boundaries.read(first, packed.num_tokens).detach().requires_grad_()
            batch_seed = micro_batch_seed(seed, index)
            with gradient_only(self._tails[layer]):
                output = run_layer(self.trained.decoder, layer, entering, packed, batch_seed)
            output.backward(step.states[index])
            assert entering.grad is not None
            step.states[index] = entering.grad

    def _make_store(self, num_rows: int) -> HiddenStore:
        width = self.checkpoint.config.hidden_size
        folder = Path(self.config.out)
        folder.mkdir(parents=True, exist_ok=True)
        shape = StoreShape(num_rows=num_rows, width=width, dtype=self.dtype, device=self.device)
        return make_store(self.config.boundary_store, shape, folder)

    def _load_ends(self) -> None:
        """Reads what is not in a layer and stays: the final norm, and lm_head for heads on tokens."""
        base = self.trained.decoder.base
        for name in self.checkpoint.weights:
            if name.startswith("norm.") and self.config.layers_norm == "yes":
                weight = self.checkpoint.require_rows(name).read(self.tensor_reader)
                assign_weights(base.get_submodule("norm"), {name.removeprefix("norm."): self._place(weight)})
        if not trains_classifier(self.config.task):
            output = self.checkpoint.output_embedding
            if output is None:
                raise InputError(
                    f"{self.checkpoint.path}: no lm_head.weight; expected a causal language model"
                )
            weight = self.checkpoint.require_rows(output).read(self.tensor_reader)
            assign_weights(_unwrapped(self.trained.lm_head), {"weight": self._place(weight)})

    def _place(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(self.device, self.dtype)


def assign_base(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Makes tensors the base parameters of a layer, past PEFT's wrappers; returns what was there."""
    before = {}
    for name, tensor in weights.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = _unwrapped(module.get_submodule(owner_name))
        before[name] = owner.get_parameter(leaf).data
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    return before


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that PEFT wrapped, or the module itself."""
    return getattr(module, "base_layer", module)


def open_streamed_reader(config: TrainConfig) -> StreamedReader:
    """Opens the model of a run whose base weights are streamed.

    Raises:
        InputError: no such checkpoint or device, a model that cannot be trained here, or --full.
    """
    if config.full:
        raise InputError("--full: trains all weights, which --streamed does not keep; expected one of both")
    device = choose_device(config)
    checkpoint = open_base(config)
    return StreamedReader(config, checkpoint, open_skeleton(config, checkpoint, device), device)
