"""Reads one decoder layer from a checkpoint and decodes it into what is computed with. Knows no threads.

Two steps, so that a device can do the second: `read` puts a layer's stored bytes, part after part, into one
buffer; `decode` makes the weights from them, where they lie. What happens to each weight is its route
(`weight_routes`): one that is stored as it is computed with is a view of the reading buffer; any other
(another dtype, quantised, merged experts) is written to a second one. A lone adapter is merged on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from strata.engine.adapters.lora import Adapter, merge
from strata.engine.model.decoder import Decoder
from strata.engine.model.weight_routes import LayerRoutes, WeightRoute, aligned, route_layers, wrong_shape
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.formats.stored_weight import ChannelInt8Weight, PlainWeight, StoredWeight
from strata.engine.weights.tensor_reader import TensorReader
from strata.kernels.int8_linear.quantize import quantize_weight

SCALE_SUFFIX = "_scale"

Weights = dict[str, torch.Tensor]
Parts = list[dict[str, torch.Tensor]]
"""The stored tensors of one weight: for each stored weight of it, role -> tensor."""
RawLayer = dict[str, Parts]
"""Stored tensors of a layer by weight name."""


class LayerLoader:
    """Loads decoder layers of one checkpoint.

    Args:
        checkpoint: where from.
        routes: what to do with the weights of each layer.
        reader: reads, and counts the bytes.
    """

    def __init__(self, checkpoint: Checkpoint, routes: Sequence[LayerRoutes], reader: TensorReader) -> None:
        self.routes = tuple(routes)
        self._checkpoint = checkpoint
        self._reader = reader
        self._scratch: torch.Tensor | None = None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.routes)

    @property
    def reader(self) -> TensorReader:
        """What reads, and counts the bytes."""
        return self._reader

    def stored_bytes(self, layer: int) -> int:
        """Bytes read from disk for a layer."""
        return self.routes[layer].stored_bytes

    def buffer_bytes(self, layer: int) -> int:
        """Size of the buffer `read` needs for a layer."""
        return self.routes[layer].buffer_bytes

    def converted_bytes(self, layer: int) -> int:
        """Size of the buffer `decode` needs for a layer: weights that are no views of the reading buffer."""
        return self.routes[layer].converted_bytes

    def stored_weights(self, layer: int, name: str) -> list[StoredWeight]:
        """What a weight of a layer is made of, in the order of its parts."""
        return [weight for weight, _ in self.routes[layer].weights[name].source.parts]

    def load(self, layer: int) -> Weights:
        """Weights of a layer in host memory of their own."""
        return self.decode(layer, self.read(layer))

    def read(self, layer: int, buffer: torch.Tensor | None = None) -> RawLayer:
        """Stored tensors of a layer, views of the buffer.

        Args:
            layer: which.
            buffer: uint8 [at least buffer_bytes(layer)], allocated when absent.
        """
        arena = _Arena(torch.empty(self.buffer_bytes(layer), dtype=torch.uint8) if buffer is None else buffer)
        routes = self.routes[layer].weights
        return {name: self._read_parts(route, arena) for name, route in routes.items()}

    def decode(self, layer: int, raw: RawLayer, out: torch.Tensor | None = None) -> Weights:
        """What is computed with, made where the stored tensors lie.

        Args:
            layer: which.
            raw: what `read` gave, on any device; merging an adapter may change it.
            out: uint8 [at least converted_bytes(layer)] on the same device; weights get memory of their own
                when absent.

        Raises:
            InputError: stored weights that make a weight of another shape than the config expects.
        """
        arena = _Arena(out)
        weights: Weights = {}
        for name, parts in raw.items():
            route = self.routes[layer].weights[name]
            if route.to_int8:
                weights[name], weights[name + SCALE_SUFFIX] = self._decode_int8(route, parts, arena)
            else:
                weights[name] = self._decode_dense(route, parts, arena)
        return weights

    def _read_parts(self, route: WeightRoute, arena: _Arena) -> Parts:
        parts = []
        for weight, _ in route.source.parts:
            tensors = {}
            for role, stored in weight.parts.items():
                region = arena.take((stored.num_bytes,), torch.uint8)
                self._reader.read_into(stored, region)
                tensors[role] = region.view(stored.torch_dtype).view(stored.shape)
            parts.append(tensors)
        return parts

    def _decode_int8(
        self, route: WeightRoute, parts: Parts, arena: _Arena
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales."""
        if "quantize" not in route.steps:
            assert isinstance(route.source.single, ChannelInt8Weight)
            return route.source.single.codes_and_scale(parts[0])
        dense = self._decode_dense(route, parts, _Arena(self._scratch_for(route, parts)))
        codes = arena.take(route.shape, torch.int8, dense.device)
        scale = arena.take(route.shape[:1], torch.float32, dense.device)
        quantize_weight(dense, out=(codes, scale))
        return codes, scale

    def _decode_dense(self, route: WeightRoute, parts: Parts, arena: _Arena) -> torch.Tensor:
        weight = self._make_dense(route, parts, arena) if "decode" in route.steps else parts[0]["weight"]
        if tuple(weight.shape) != route.shape:
            name = route.source.name
            raise wrong_shape(self._checkpoint, name, tuple(weight.shape), route.shape)
        return weight if route.lora is None else merge(weight, route.lora, out=weight)

    def _make_dense(self, route: WeightRoute, parts: Parts, arena: _Arena) -> torch.Tensor:
        source, device = route.source, _device_of(parts)
        if source.single is not None:
            return source.single.decode(parts[0], arena.take(source.single.shape, route.dtype, device))
        decoded = [
            tensors["weight"]
            if isinstance(weight, PlainWeight)
            else weight.decode(tensors, torch.empty(weight.shape, dtype=route.dtype, device=device))
            for (weight, _), tensors in zip(source.parts, parts, strict=True)
        ]
        combined = source.combine(decoded, self._checkpoint.config)
        return arena.take(tuple(combined.shape), route.dtype, combined.device).copy_(combined)

    def _scratch_for(self, route: WeightRoute, parts: Parts) -> torch.Tensor | None:
        """Memory on the host that all such weights share, made when the first one comes; none elsewhere."""
        if not route.needs_scratch or _device_of(parts).type != "cpu":
            return None
        if self._scratch is None:
            num_bytes = max(layer.scratch_bytes for layer in self.routes)
            self._scratch = torch.empty(num_bytes, dtype=torch.uint8)
        return self._scratch


def make_loader(
    checkpoint: Checkpoint,
    decoder: Decoder,
    dtype: torch.dtype,
    reader: TensorReader,
    adapters: Sequence[Adapter] = (),
) -> LayerLoader:
    """The loader that feeds a decoder; a lone adapter is merged, several are left to the modules.

    Raises:
        InputError: the checkpoint lacks a weight of a layer, or holds it in another shape.
    """
    return LayerLoader(checkpoint, route_layers(checkpoint, decoder, dtype, adapters), reader)


class _Arena:
    """Cuts tensors, one after another, out of a uint8 buffer; without one each gets memory of its own."""

    def __init__(self, buffer: torch.Tensor | None) -> None:
        self._buffer, self._used = buffer, 0

    def take(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
    ) -> torch.Tensor:
        if self._buffer is None:
            return torch.empty(shape, dtype=dtype, device=device)
        size = torch.Size(shape).numel() * dtype.itemsize
        region = self._buffer[self._used : self._used + size]
        self._used += aligned(size)
        return region.view(dtype).view(shape)


def _device_of(parts: Parts) -> torch.device:
    return next(iter(parts[0].values())).device
