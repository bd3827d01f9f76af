"""What a training step needs of memory, known before any weight is read. Knows no files and no optimizer.

Per device: base weights (all, or two streamed layers with what they are decoded from), adapter and head with
gradient and AdamW's two moments (16 bytes a float32 parameter), and the activations of one micro-batch: what
autograd keeps for one layer (streamed, or with gradient checkpointing) or for all. The host holds, for a
streamed run, the layers' inputs of the whole step.
What autograd keeps is counted, not estimated: one layer is run on the meta device, the tensors it saves are
added up. Independent check: the resident set of a real step (tests, and part large of `strata bench train`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedConfig

from strata.engine.machine.devices import GIB
from strata.engine.model.decoder import build_decoder
from strata.engine.model.weight_routes import route_layers
from strata.engine.plan.costs import ModelCosts, StorageFormat, model_costs, shape_costs
from strata.engine.results.human_units import human_bytes
from strata.engine.types import Branch, InputError, Prompt, Question, Target
from strata.engine.weights.checkpoint import Checkpoint
from strata.training.config import TrainConfig
from strata.training.readers.decoder_pass import run_layer
from strata.training.readers.packed_batch import pack_examples
from strata.training.readers.trained_model import TrainedModel, make_skeleton
from strata.training.tasks import trains_classifier
from strata.training.types import Example

OPTIMIZED_BYTES = 16
"""Of a trained float32 parameter: itself, its gradient, and AdamW's two moments."""
BACKWARD_FACTOR = 1.5
"""Peak of a layer's backward pass, as a multiple of what its forward pass kept: gradients in flight."""
PROBE_TOKENS = 128
LEAST_TOKENS = 256
"""The smallest micro-batch worth planning."""
META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes a step needs, by what for.

    Attributes:
        weights: base weights on the device; streamed, two layers and what they are decoded from.
        buffers: pinned copies of two streamed layers as stored, in host memory beside a GPU.
        trained: adapter and head, their gradients and the optimizer's moments.
        activations: of one micro-batch, backward pass included.
        boundaries: the inputs of all layers for all tokens of a step (host memory, or disk).
        embedding: rows of the input embedding, and the vocabulary projection where the head needs it.
    """

    weights: int
    buffers: int
    trained: int
    activations: int
    boundaries: int
    embedding: int

    @property
    def device(self) -> int:
        """Bytes on the device that computes."""
        return self.weights + self.trained + self.activations + self.embedding

    @property
    def host(self) -> int:
        """Bytes in host memory beside a GPU."""
        return self.buffers + self.boundaries

    def describe(self) -> list[str]:
        """A line for each part."""
        parts = {
            "base weights": self.weights,
            "adapter, head, gradients, AdamW": self.trained,
            "activations of a micro-batch": self.activations,
            "embedding rows, vocabulary projection": self.embedding,
            "on the device": self.device,
            "read-ahead buffers (host)": self.buffers,
            "layer inputs (host)": self.boundaries,
        }
        return [f"{name:40} {human_bytes(size)}" for name, size in parts.items()]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedShape:
    """What a plan has to know of a model, which need not be there.

    Attributes:
        model: its configuration.
        dtype: what it computes in.
        costs: bytes of its layers, as stored and as computed with.
        skeleton: its modules on the meta device, adapter and head included.
    """

    model: PreTrainedConfig
    dtype: torch.dtype
    costs: ModelCosts
    skeleton: TrainedModel


def shape_of(config: TrainConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> TrainedShape:
    """The shape of a run's base model when it computes in a dtype; reads headers only."""
    decoder = build_decoder(checkpoint.config, dtype)
    return TrainedShape(
        model=checkpoint.config,
        dtype=dtype,
        costs=model_costs(checkpoint.config, route_layers(checkpoint, decoder, dtype), dtype),
        skeleton=make_skeleton(config, checkpoint.config, dtype, META),
    )


def absent_shape(
    config: TrainConfig, model: PreTrainedConfig, storage: StorageFormat, dtype: torch.dtype
) -> TrainedShape:
    """The shape of a model that is not there, as if its matrices were stored in a format."""
    decoder = build_decoder(model, dtype)
    costs = shape_costs(model, decoder, storage, dtype, "dense")
    skeleton = make_skeleton(config, model, dtype, META)
    return TrainedShape(model=model, dtype=dtype, costs=costs, skeleton=skeleton)


def plan_memory(
    config: TrainConfig, shape: TrainedShape, *, micro_batch_tokens: int, step_tokens: int, on_cpu: bool
) -> MemoryPlan:
    """What a step of the run needs.

    Args:
        config: the run's settings.
        shape: its base model.
        micro_batch_tokens: tree tokens computed at a time.
        step_tokens: tree tokens of an optimizer step.
        on_cpu: computed in host memory, where layers are read and decoded in place.
    """
    costs, num_layers = shape.costs, shape.model.num_hidden_layers
    kept = count_saved_bytes(shape.skeleton) * micro_batch_tokens
    layers_kept = 1 if config.streamed or config.gradient_checkpointing else num_layers
    inputs = shape.model.hidden_size * shape.dtype.itemsize * num_layers
    checkpointed = inputs * micro_batch_tokens if config.gradient_checkpointing else 0
    stored, converted = max(costs.buffer_bytes), max(costs.converted_bytes)
    two_layers = 2 * max(costs.weight_bytes) + min(converted, stored)
    if on_cpu:
        two_layers = 2 * (stored + converted)
    return MemoryPlan(
        weights=two_layers if config.streamed else sum(costs.weight_bytes),
        buffers=2 * stored if config.streamed and not on_cpu else 0,
        trained=OPTIMIZED_BYTES * count_trained(shape.skeleton),
        activations=int(kept * (layers_kept - 1 + BACKWARD_FACTOR)) + checkpointed,
        boundaries=inputs * step_tokens if config.streamed else 0,
        embedding=_embedding_bytes(config, shape),
    )


def fit_micro_batch(
    config: TrainConfig, shape: TrainedShape, budget_gib: float, *, most: int, on_cpu: bool
) -> int:
    """The largest micro-batch, in tree tokens up to `most`, that a budget for the device has room for.

    Raises:
        InputError: not even LEAST_TOKENS fit.
    """
    least, large = (
        plan_memory(config, shape, micro_batch_tokens=tokens, step_tokens=0, on_cpu=on_cpu).device
        for tokens in (LEAST_TOKENS, most)
    )
    room = budget_gib * GIB - least
    if room < 0:
        raise InputError(
            f"--memory-gib {budget_gib}: micro-batches of {LEAST_TOKENS} tokens need {least / GIB:.2f} GiB; "
            "expected that much, or --streamed, --gradient-checkpointing, a smaller --lora-r"
        )
    return min(most, LEAST_TOKENS + int(room * (most - LEAST_TOKENS) / max(1, large - least)))


def count_trained(model: TrainedModel) -> int:
    """Parameters that are trained."""
    groups = model.parameter_groups(1.0)
    return sum(weight.numel() for group in groups for weight in group.parameters.values())


def count_saved_bytes(skeleton: TrainedModel) -> int:
    """Bytes a token that autograd keeps for one layer, on the meta device.

    Weights do not count, nor views of what is counted already.
    """
    packed = pack_examples([_chain(PROBE_TOKENS)], META)
    decoder = skeleton.decoder
    dtype = decoder.layers[0].get_parameter("input_layernorm.weight").dtype
    decoder.prepare_rope(PROBE_TOKENS, META, dtype)
    weights = {parameter.untyped_storage()._cdata for parameter in skeleton.module.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = storage
        return tensor

    width = decoder.config.hidden_size
    hidden = torch.empty(PROBE_TOKENS, width, dtype=dtype, device=META, requires_grad=True)
    skeleton.dropout_on(True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run_layer(decoder, 0, hidden, packed, 0)
    skeleton.dropout_on(False)
    return sum(storage.nbytes() for storage in seen.values()) // PROBE_TOKENS


def _chain(num_tokens: int) -> Example:
    """A question of one branch."""
    ids = np.arange(num_tokens, dtype=np.int32) % 7
    target = Target(position=num_tokens - 1, token_id=None)
    branch = Branch(option=0, order=(), label=None, token_ids=ids, text="", targets=(target,))
    question = Question(id="chain", prompt="", options=("",))
    return Example(prompt=Prompt(question=question, branches=(branch,)), labels=np.ones(1))


def _embedding_bytes(config: TrainConfig, shape: TrainedShape) -> int:
    table = shape.model.vocab_size * shape.model.hidden_size * shape.dtype.itemsize
    return table if trains_classifier(config.task) else 2 * table
