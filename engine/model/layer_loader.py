"""Reads one decoder layer from a checkpoint and decodes it into what is computed with. Knows no threads.

Two steps, so that a device can do the second: `read` puts a layer's stored bytes, part after part, into one
buffer; `decode` makes the weights from them, where they lie. A weight that is stored as it is computed with
is a view of the reading buffer; any other (another dtype, quantised, merged experts) is written to a second
one. A lone adapter is merged on the way. Matrices named in `int8` become int8 codes "name" [N, K] and float32
scales "name_scale" [N].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from strata.engine.adapters.lora import Adapter, LoraWeights, merge
from strata.engine.model.decoder import Decoder
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint, WeightSource
from strata.engine.weights.formats.stored_weight import ChannelInt8Weight, PlainWeight
from strata.engine.weights.tensor_reader import TensorReader
from strata.kernels.int8_linear.quantize import quantize_weight

ALIGNMENT_BYTES = 64
SCALE_SUFFIX = "_scale"

Weights = dict[str, torch.Tensor]
RawLayer = dict[str, list[dict[str, torch.Tensor]]]
"""Stored tensors of a layer: weight name -> for each stored weight of it, role -> tensor."""
Shapes = Mapping[str, tuple[int, ...]]


class LayerLoader:
    """Loads decoder layers of one checkpoint.

    Args:
        checkpoint: where from.
        shapes: for every layer the names and shapes its module expects of dense weights.
        dtype: compute dtype of dense weights.
        reader: reads, and counts the bytes.
        int8: for every layer the names of the matrices to give as int8 codes and scales.
        adapter: for every layer the LoRA weights to merge, by module path; None merges nothing.

    Raises:
        InputError: the checkpoint lacks a weight of a layer, or holds it in another shape.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        shapes: Sequence[Shapes],
        dtype: torch.dtype,
        reader: TensorReader,
        *,
        int8: Sequence[frozenset[str]] | None = None,
        adapter: Sequence[Mapping[str, LoraWeights]] | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._reader = reader
        self._sources = [_match_sources(checkpoint, layer, expected) for layer, expected in enumerate(shapes)]
        self._shapes = shapes
        self._int8 = int8 or [frozenset()] * len(shapes)
        self._adapter = adapter
        self._scratch: torch.Tensor | None = None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self._sources)

    @property
    def reader(self) -> TensorReader:
        """What reads, and counts the bytes."""
        return self._reader

    def stored_bytes(self, layer: int) -> int:
        """Bytes read from disk for a layer."""
        return sum(source.num_bytes for source in self._sources[layer].values())

    def buffer_bytes(self, layer: int) -> int:
        """Size of the buffer `read` needs for a layer."""
        sources = self._sources[layer].values()
        parts = [part for source in sources for weight, _ in source.parts for part in weight.parts.values()]
        return sum(_aligned(part.num_bytes) for part in parts)

    def converted_bytes(self, layer: int) -> int:
        """Size of the buffer `decode` needs for a layer: weights that are no views of the reading buffer."""
        return sum(
            self._form_bytes(layer, name)
            for name, source in self._sources[layer].items()
            if not self._is_view(layer, name, source)
        )

    def weight_bytes(self, layer: int) -> int:
        """Bytes of a layer's weights as they are computed with."""
        return sum(self._form_bytes(layer, name) for name in self._sources[layer])

    def scratch_bytes(self) -> int:
        """Memory for one dense weight on its way to int8, kept by the loader; 0 when none passes there."""
        return max(
            (
                _num_elements(self._shapes[layer][name]) * self._dtype.itemsize
                for layer, sources in enumerate(self._sources)
                for name, source in sources.items()
                if name in self._int8[layer] and self._needs_scratch(layer, name, source)
            ),
            default=0,
        )

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
        raw: RawLayer = {}
        for name, source in self._sources[layer].items():
            raw[name] = []
            for weight, _ in source.parts:
                tensors = {}
                for role, stored in weight.parts.items():
                    region = arena.take((stored.num_bytes,), torch.uint8)
                    self._reader.read_into(stored, region)
                    tensors[role] = region.view(stored.torch_dtype).view(stored.shape)
                raw[name].append(tensors)
        return raw

    def decode(self, layer: int, raw: RawLayer, out: torch.Tensor | None = None) -> Weights:
        """What is computed with, made where the stored tensors lie.

        Args:
            layer: which.
            raw: what `read` gave, on any device; merging an adapter may change it.
            out: uint8 [at least converted_bytes(layer)] on the same device; weights get memory of their own
                when absent.
        """
        arena = _Arena(out)
        weights: Weights = {}
        for name, parts in raw.items():
            if name in self._int8[layer]:
                weights |= self._decode_int8(layer, name, parts, arena)
            else:
                weights[name] = self._decode_dense(layer, name, parts, arena)
        return weights

    def _decode_dense(
        self, layer: int, name: str, parts: list[dict[str, torch.Tensor]], arena: _Arena
    ) -> torch.Tensor:
        source, expected = self._sources[layer][name], self._shapes[layer][name]
        weight = self._merge_parts(source, parts, arena)
        if tuple(weight.shape) != expected:
            raise _wrong_shape(self._checkpoint, layer, name, tuple(weight.shape), expected)
        lora = self._lora(layer, name)
        return weight if lora is None else merge(weight, lora, out=weight)

    def _decode_int8(
        self, layer: int, name: str, parts: list[dict[str, torch.Tensor]], arena: _Arena
    ) -> Weights:
        source, shape = self._sources[layer][name], self._shapes[layer][name]
        if isinstance(source.single, ChannelInt8Weight) and self._lora(layer, name) is None:
            codes, scale = source.single.codes_and_scale(parts[0])
            return {name: codes, name + SCALE_SUFFIX: scale}
        if isinstance(source.single, PlainWeight) and self._lora(layer, name) is None:
            dense = parts[0]["weight"]
        else:
            scratch = self._scratch_on(next(iter(parts[0].values())).device)
            dense = self._decode_dense(layer, name, parts, _Arena(scratch))
        codes = arena.take(shape, torch.int8, dense.device)
        scale = arena.take(shape[:1], torch.float32, dense.device)
        quantize_weight(dense, out=(codes, scale))
        return {name: codes, name + SCALE_SUFFIX: scale}

    def _merge_parts(
        self, source: WeightSource, parts: list[dict[str, torch.Tensor]], arena: _Arena
    ) -> torch.Tensor:
        single = source.single
        if isinstance(single, PlainWeight) and single.dtype == self._dtype:
            return parts[0]["weight"]
        if single is not None:
            device = next(iter(parts[0].values())).device
            return single.decode(parts[0], arena.take(single.shape, self._dtype, device))
        decoded = [
            tensors["weight"]
            if isinstance(weight, PlainWeight)
            else weight.decode(
                tensors, next(iter(tensors.values())).new_empty(weight.shape, dtype=self._dtype)
            )
            for (weight, _), tensors in zip(source.parts, parts, strict=True)
        ]
        combined = source.combine(decoded, self._checkpoint.config)
        return arena.take(tuple(combined.shape), self._dtype, combined.device).copy_(combined)

    def _lora(self, layer: int, name: str) -> LoraWeights | None:
        return None if self._adapter is None else self._adapter[layer].get(name.removesuffix(".weight"))

    def _is_view(self, layer: int, name: str, source: WeightSource) -> bool:
        if name in self._int8[layer]:
            return isinstance(source.single, ChannelInt8Weight) and self._lora(layer, name) is None
        return isinstance(source.single, PlainWeight) and source.single.dtype == self._dtype

    def _needs_scratch(self, layer: int, name: str, source: WeightSource) -> bool:
        """Whether a weight bound for int8 is first made dense: decoded, merged, or both."""
        if self._is_view(layer, name, source):
            return False
        if not isinstance(source.single, PlainWeight):
            return True
        return self._lora(layer, name) is not None and source.single.dtype != self._dtype

    def _scratch_on(self, device: torch.device) -> torch.Tensor | None:
        if device.type == "cpu" and self._scratch is None:
            self._scratch = torch.empty(self.scratch_bytes(), dtype=torch.uint8)
        return self._scratch if device.type == "cpu" else None

    def _form_bytes(self, layer: int, name: str) -> int:
        shape = self._shapes[layer][name]
        if name in self._int8[layer]:
            return _aligned(_num_elements(shape)) + _aligned(4 * shape[0])
        return _aligned(_num_elements(shape) * self._dtype.itemsize)


def make_loader(
    checkpoint: Checkpoint,
    decoder: Decoder,
    dtype: torch.dtype,
    reader: TensorReader,
    adapters: Sequence[Adapter] = (),
) -> LayerLoader:
    """The loader that feeds a decoder; a lone adapter is merged, several are left to the modules."""
    layers = range(checkpoint.num_layers)
    return LayerLoader(
        checkpoint,
        [decoder.layer_shapes(layer) for layer in layers],
        dtype,
        reader,
        int8=[decoder.int8_names(layer) for layer in layers],
        adapter=adapters[0].layers if len(adapters) == 1 else None,
    )


class _Arena:
    """Cuts tensors, one after another, out of a uint8 buffer; without one each gets memory of its own."""

    def __init__(self, buffer: torch.Tensor | None) -> None:
        self._buffer, self._used = buffer, 0

    def take(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
    ) -> torch.Tensor:
        if self._buffer is None:
            return torch.empty(shape, dtype=dtype, device=device)
        size = _num_elements(shape) * dtype.itemsize
        region = self._buffer[self._used : self._used + size]
        self._used += _aligned(size)
        return region.view(dtype).view(shape)


def _match_sources(checkpoint: Checkpoint, layer: int, expected: Shapes) -> dict[str, WeightSource]:
    sources = {name: checkpoint.require(f"layers.{layer}.{name}") for name in expected}
    for name, source in sources.items():
        single = source.single
        if single is not None and single.shape != expected[name]:
            raise _wrong_shape(checkpoint, layer, name, single.shape, expected[name])
        for weight, _ in source.parts:
            if isinstance(weight, PlainWeight):
                weight.dtype  # noqa: B018  (raises for a dtype that cannot be computed with)
    return sources


def _wrong_shape(
    checkpoint: Checkpoint, layer: int, name: str, found: tuple[int, ...], expected: tuple[int, ...]
) -> InputError:
    return InputError(
        f"{checkpoint.path}: layers.{layer}.{name} has shape {list(found)}; "
        f"the config expects {list(expected)}"
    )


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _num_elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
