"""Reads one decoder layer from a checkpoint into host memory, in the compute dtype. Knows nothing of threads.

A layer's stored bytes go, tensor after tensor, into one buffer; a weight that is stored as it is computed is
a view of that buffer, any other (another dtype, merged experts) gets memory of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from strata.engine.checkpoint import Checkpoint, WeightSource
from strata.engine.safetensors_file import TensorReader
from strata.engine.types import InputError

ALIGNMENT_BYTES = 64


class LayerLoader:
    """Loads decoder layers of one checkpoint.

    Args:
        checkpoint: where from.
        shapes: for every layer the names and shapes its module expects.
        dtype: compute dtype of the weights returned.
        reader: counts the bytes.
        convert: False leaves weights in their stored dtype, for a device to convert after the copy.

    Raises:
        InputError: the checkpoint lacks a weight of a layer, or holds it in another shape.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        shapes: list[dict[str, tuple[int, ...]]],
        dtype: torch.dtype,
        reader: TensorReader,
        *,
        convert: bool = True,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._convert = convert
        self._reader = reader
        self._sources = [_match_sources(checkpoint, layer, expected) for layer, expected in enumerate(shapes)]
        self._shapes = shapes

    def stored_bytes(self, layer: int) -> int:
        """Bytes read from disk for a layer."""
        return sum(source.num_bytes for source in self._sources[layer].values())

    def buffer_bytes(self, layer: int) -> int:
        """Size of the buffer `load` needs for a layer."""
        parts = [stored for source in self._sources[layer].values() for stored, _ in source.parts]
        return sum(-(-stored.num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for stored in parts)

    def converted_bytes(self, layer: int) -> int:
        """Memory of a layer's weights beyond the buffer: those that are not stored as they are computed."""
        return sum(
            _num_elements(self._shapes[layer][name]) * self._dtype.itemsize
            for name, source in self._sources[layer].items()
            if not self._is_view(source)
        )

    def load(self, layer: int, buffer: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Weights of a layer, in the compute dtype.

        Args:
            layer: which.
            buffer: uint8 [at least buffer_bytes(layer)] to read into; the weights may be views of it. One is
                allocated when absent.
        """
        buffer = torch.empty(self.buffer_bytes(layer), dtype=torch.uint8) if buffer is None else buffer
        offset, weights = 0, {}
        for name, source in self._sources[layer].items():
            tensors = []
            for stored, _ in source.parts:
                region = buffer[offset : offset + stored.num_bytes]
                self._reader.read_into(stored, region)
                tensors.append(region.view(stored.torch_dtype).view(stored.shape))
                offset += -(-stored.num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            combined = source.combine(tensors, self._checkpoint.config)
            weights[name] = combined.to(self._dtype) if self._convert else combined
        self._check_shapes(layer, weights)
        return weights

    def _is_view(self, source: WeightSource) -> bool:
        stays = not self._convert or source.parts[0][0].torch_dtype == self._dtype
        return source.converter is None and stays

    def _check_shapes(self, layer: int, weights: Mapping[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            if tuple(weight.shape) != self._shapes[layer][name]:
                raise _wrong_shape(
                    self._checkpoint, layer, name, tuple(weight.shape), self._shapes[layer][name]
                )


def _match_sources(
    checkpoint: Checkpoint, layer: int, expected: dict[str, tuple[int, ...]]
) -> dict[str, WeightSource]:
    sources = {name: checkpoint.require(f"layers.{layer}.{name}") for name in expected}
    for name, source in sources.items():
        stored = source.parts[0][0]
        if source.converter is None and stored.shape != expected[name]:
            raise _wrong_shape(checkpoint, layer, name, stored.shape, expected[name])
        stored.torch_dtype  # noqa: B018  (raises for a dtype that cannot be computed with)
    return sources


def _wrong_shape(
    checkpoint: Checkpoint, layer: int, name: str, found: tuple[int, ...], expected: tuple[int, ...]
) -> InputError:
    return InputError(
        f"{checkpoint.path}: layers.{layer}.{name} has shape {list(found)}; "
        f"the config expects {list(expected)}"
    )


def _num_elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
