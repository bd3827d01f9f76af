"""The way of every weight of a layer from the bytes on disk to what is computed with, decided once a weight.

Loading follows a route, and the planner counts what it costs: nothing else asks how a weight is stored,
whether it becomes int8 or whether an adapter is merged into it. Knows no files, devices or buffers: what a
route says of memory are sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from strata.engine.adapters.lora import Adapter, LoraWeights
from strata.engine.model.decoder import Decoder
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint, WeightSource
from strata.engine.weights.formats.stored_weight import ChannelInt8Weight, PlainWeight

ALIGNMENT_BYTES = 64
"""Where tensors begin in a buffer: at a multiple of this."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each dense weight of a layer, by its name in the layer."""

Step = Literal["decode", "combine", "merge", "quantize"]
"""decode: codes, or another dtype, become the compute dtype. combine: several stored weights become one.
merge: an adapter is added where the weight lies. quantize: a dense weight becomes int8 codes and scales."""


@dataclass(frozen=True, kw_only=True)
class LayerForm:
    """What a layer's module computes with.

    Attributes:
        shapes: of its dense weights.
        dtype: of those that stay dense.
        int8: names of the matrices that are codes "name" [N, K] and float32 scales "name_scale" [N].
        buffers: names of those that are no parameters; transformers keeps them in float32.
    """

    shapes: Shapes
    dtype: torch.dtype
    int8: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()

    def dtype_of(self, name: str) -> torch.dtype:
        """Of one weight."""
        return torch.float32 if name in self.buffers else self.dtype


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightRoute:
    """What one weight goes through, and the bytes it takes on the way.

    Attributes:
        source: what is stored.
        shape: of the dense weight.
        dtype: it is computed with in, or quantised from.
        to_int8: it is computed with in int8.
        lora: the adapter to merge into it, if any.
        steps: in order; none for a weight that is computed with as it is stored.
    """

    source: WeightSource
    shape: tuple[int, ...]
    dtype: torch.dtype
    to_int8: bool
    lora: LoraWeights | None
    steps: tuple[Step, ...]

    @property
    def is_view(self) -> bool:
        """It is computed with where it was read to."""
        return set(self.steps) <= {"merge"}

    @property
    def needs_scratch(self) -> bool:
        """Its dense form is new, and only on the way to int8."""
        return "decode" in self.steps and "quantize" in self.steps

    @property
    def stored_bytes(self) -> int:
        """Bytes read from disk."""
        return self.source.num_bytes

    @property
    def buffer_bytes(self) -> int:
        """Of the reading buffer."""
        parts = [part for weight, _ in self.source.parts for part in weight.parts.values()]
        return sum(aligned(part.num_bytes) for part in parts)

    @property
    def form_bytes(self) -> int:
        """Of what is computed with."""
        if self.to_int8:
            return aligned(self.num_elements) + aligned(torch.float32.itemsize * self.shape[0])
        return aligned(self.num_elements * self.dtype.itemsize)

    @property
    def converted_bytes(self) -> int:
        """Of what is computed with, where that does not lie in the reading buffer."""
        return 0 if self.is_view else self.form_bytes

    @property
    def scratch_bytes(self) -> int:
        """Of its dense form, where nothing else has room for that."""
        return self.num_elements * self.dtype.itemsize if self.needs_scratch else 0

    @property
    def decode_weights(self) -> dict[str, int]:
        """Weights that each step of decoding meets, by the step (see MachineRates.decode_weights_per_s)."""
        counts = {}
        if "decode" in self.steps:
            counts[min(weight.format_name for weight, _ in self.source.parts)] = self.num_elements
        if "quantize" in self.steps:
            counts["quantize"] = self.num_elements
        return counts

    @property
    def num_elements(self) -> int:
        """Of the dense weight."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerRoutes:
    """The routes of a layer's weights by name, and their sums."""

    weights: Mapping[str, WeightRoute] = field(default_factory=dict)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes read from disk."""
        return sum(route.stored_bytes for route in self.weights.values())

    @cached_property
    def buffer_bytes(self) -> int:
        """Of the reading buffer."""
        return sum(route.buffer_bytes for route in self.weights.values())

    @cached_property
    def weight_bytes(self) -> int:
        """Of the weights as they are computed with."""
        return sum(route.form_bytes for route in self.weights.values())

    @cached_property
    def converted_bytes(self) -> int:
        """Of these, the part that does not lie in the reading buffer."""
        return sum(route.converted_bytes for route in self.weights.values())

    @cached_property
    def scratch_bytes(self) -> int:
        """For one dense weight at a time on its way to int8; 0 when none passes there."""
        return max((route.scratch_bytes for route in self.weights.values()), default=0)

    @cached_property
    def decode_weights(self) -> dict[str, int]:
        """Weights that each step of decoding meets, by the step."""
        counts: Counter[str] = Counter()
        for route in self.weights.values():
            counts.update(route.decode_weights)
        return dict(counts)


def route_layers(
    checkpoint: Checkpoint, decoder: Decoder, dtype: torch.dtype, adapters: Sequence[Adapter] = ()
) -> tuple[LayerRoutes, ...]:
    """The routes of all layers that feed a decoder; a lone adapter is merged, several are left to modules.

    Args:
        checkpoint: where from.
        decoder: whose modules the weights are for.
        dtype: compute dtype of dense weights.
        adapters: that the run applies.

    Raises:
        InputError: the checkpoint lacks a weight of a layer, or holds it in another shape.
    """
    return tuple(
        route_layer(
            checkpoint,
            layer,
            LayerForm(
                shapes=decoder.layer_shapes(layer),
                dtype=dtype,
                int8=decoder.int8_names(layer),
                buffers=decoder.buffer_names(layer),
            ),
            adapters[0].layers[layer] if len(adapters) == 1 else {},
        )
        for layer in range(checkpoint.num_layers)
    )


def route_layer(
    checkpoint: Checkpoint, layer: int, form: LayerForm, loras: Mapping[str, LoraWeights] | None = None
) -> LayerRoutes:
    """The routes of one layer's weights.

    Args:
        checkpoint: where from.
        layer: which.
        form: what its module computes with.
        loras: to merge, by module path in the layer.

    Raises:
        InputError: the checkpoint lacks a weight of the layer, or holds it in another shape, or in a dtype
            that cannot be computed with.
    """
    loras = loras or {}
    routes = {}
    for name, shape in form.shapes.items():
        source = checkpoint.require(f"layers.{layer}.{name}")
        if source.single is not None and source.single.shape != shape:
            raise wrong_shape(checkpoint, f"layers.{layer}.{name}", source.single.shape, shape)
        routes[name] = _route_weight(source, name, form, loras.get(name.removesuffix(".weight")))
    return LayerRoutes(weights=routes)


def _route_weight(source: WeightSource, name: str, form: LayerForm, lora: LoraWeights | None) -> WeightRoute:
    to_int8 = name in form.int8
    return WeightRoute(
        source=source,
        shape=form.shapes[name],
        dtype=form.dtype_of(name),
        to_int8=to_int8,
        lora=lora,
        steps=_steps(source, form.dtype_of(name), to_int8=to_int8, merges=lora is not None),
    )


def _steps(source: WeightSource, dtype: torch.dtype, *, to_int8: bool, merges: bool) -> tuple[Step, ...]:
    # A plain weight's dtype is asked for also where it does not matter: it raises for one that is no float.
    plain_dtypes = [weight.dtype for weight, _ in source.parts if isinstance(weight, PlainWeight)]
    single = source.single
    if to_int8 and isinstance(single, ChannelInt8Weight) and not merges:
        return ()
    # Quantising reads any floating dtype, merging the compute dtype only.
    is_dense = isinstance(single, PlainWeight) and (plain_dtypes == [dtype] or (to_int8 and not merges))
    steps: list[Step] = [] if is_dense else ["decode"]
    if single is None:
        steps.append("combine")
    if merges:
        steps.append("merge")
    if to_int8:
        steps.append("quantize")
    return tuple(steps)


def wrong_shape(
    checkpoint: Checkpoint, name: str, found: tuple[int, ...], expected: tuple[int, ...]
) -> InputError:
    """The error for a weight whose shape is not what the model's config leads to."""
    return InputError(
        f"{checkpoint.path}: {name} has shape {list(found)}; the config expects {list(expected)}"
    )


def aligned(num_bytes: int) -> int:
    """Bytes of a buffer that a tensor takes, with what lies between it and the next."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
