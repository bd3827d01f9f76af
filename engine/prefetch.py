"""Reads the layers of a run ahead of the workers: a thread, reusable buffers, a copy stream on CUDA.

Flow of one streamed layer: a free slot -> its host buffer is filled from disk -> (CUDA: copied to every
device on a copy stream) -> every worker takes it, computes, gives it back -> the slot is free. There are
`num_slots` slots, so at most that many streamed layers are in memory, the one being computed included.
Resident layers are read in the first sweep and stay. All devices share one read. Knows nothing of what a
layer is used for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from strata.engine.coordinator import Coordinator
from strata.engine.layer_loader import LayerLoader

Weights = dict[str, torch.Tensor]
Prepare = Callable[[int, Weights], Weights]
"""What happens to a layer's weights on their device before use, such as merging an adapter."""


@dataclass(kw_only=True, eq=False)
class _Slot:
    """A host buffer, and what the devices must have done before it may be filled again."""

    buffer: torch.Tensor
    computed: list[torch.cuda.Event] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class _PlacedLayer:
    """A layer's weights on each device, and how many workers still need them."""

    slot: _Slot | None
    users_left: int
    weights: dict[torch.device, Weights] = field(default_factory=dict)
    copied: dict[torch.device, torch.cuda.Event] = field(default_factory=dict)


class LayerStream:
    """The layers of all sweeps of a run, in order.

    Args:
        loader: reads a layer into host memory.
        num_layers: decoder layers.
        num_sweeps: how often all layers are needed.
        resident: layers that stay in memory after the first sweep.
        devices: the devices of the workers, one entry a worker; entries may repeat.
        num_slots: streamed layers in memory at once, at least 2.
        coordinator: what the waits go through.
        dtype: what weights become on a CUDA device after the copy; None keeps theirs (on CPU the loader has
            converted them).
        prepare: applied on each device to freshly placed weights.
    """

    def __init__(
        self,
        *,
        loader: LayerLoader,
        num_layers: int,
        num_sweeps: int,
        resident: frozenset[int],
        devices: Sequence[torch.device],
        num_slots: int,
        coordinator: Coordinator,
        dtype: torch.dtype | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        self._loader = loader
        self._order = [
            (sweep, layer)
            for sweep in range(num_sweeps)
            for layer in range(num_layers)
            if sweep == 0 or layer not in resident
        ]
        self._resident = resident
        self._devices = list(devices)
        self._unique_devices = list(dict.fromkeys(devices))
        self._coordinator = coordinator
        self._dtype = dtype
        self._prepare = prepare
        self._placed: dict[tuple[int, int], _PlacedLayer] = {}
        self._streams = {
            device: torch.cuda.Stream(device) for device in self._unique_devices if device.type == "cuda"
        }
        streamed = [layer for layer in range(num_layers) if layer not in resident]
        size = max((loader.buffer_bytes(layer) for layer in streamed), default=0)
        count = min(num_slots, len(streamed) * num_sweeps)
        self._free_slots = [
            _Slot(buffer=torch.empty(size, dtype=torch.uint8, pin_memory=bool(self._streams)))
            for _ in range(count)
        ]
        self.wait_s = 0.0
        self.read_s = 0.0

    def read_all(self) -> None:
        """The background thread's work: every layer of every sweep, in order."""
        for sweep, layer in self._order:
            slot = None if layer in self._resident else self._take_slot()
            started = time.perf_counter()
            weights = self._loader.load(layer, None if slot is None else slot.buffer)
            placed = self._place(layer, weights, slot)
            self.read_s += time.perf_counter() - started
            self._coordinator.update(partial(self._placed.__setitem__, (sweep, layer), placed))

    def take(self, sweep: int, layer: int, device: torch.device) -> Weights:
        """Weights of a layer on a device, once they are there. Every worker must `give_back` what it took."""
        key = self._key(sweep, layer)
        started = time.perf_counter()
        self._coordinator.wait_for(lambda: key in self._placed)
        self.wait_s += time.perf_counter() - started
        placed = self._placed[key]
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            stream.wait_event(placed.copied[device])
            for weight in placed.weights[device].values():
                weight.record_stream(stream)
        return placed.weights[device]

    def give_back(self, sweep: int, layer: int, device: torch.device) -> None:
        """Says that a worker has queued its last use of a layer; the last worker frees the slot."""
        key = self._key(sweep, layer)
        if layer in self._resident:
            return
        placed = self._placed[key]
        assert placed.slot is not None, "streamed layers have a slot"
        if device.type == "cuda":
            placed.slot.computed.append(torch.cuda.current_stream(device).record_event())
        self._coordinator.update(lambda: self._free(key, placed))

    def _key(self, sweep: int, layer: int) -> tuple[int, int]:
        return (0 if layer in self._resident else sweep, layer)

    def _take_slot(self) -> _Slot:
        self._coordinator.wait_for(lambda: bool(self._free_slots))
        slot = self._free_slots.pop()
        for event in slot.computed:
            event.synchronize()
        slot.computed.clear()
        return slot

    def _free(self, key: tuple[int, int], placed: _PlacedLayer) -> None:
        placed.users_left -= 1
        if placed.users_left == 0:
            assert placed.slot is not None
            del self._placed[key]
            self._free_slots.append(placed.slot)

    def _place(self, layer: int, weights: Weights, slot: _Slot | None) -> _PlacedLayer:
        placed = _PlacedLayer(slot=slot, users_left=len(self._devices))
        for device in self._unique_devices:
            if device.type == "cuda":
                with torch.cuda.stream(self._streams[device]):
                    on_device = {
                        name: weight.to(device, non_blocking=True).to(self._dtype or weight.dtype)
                        for name, weight in weights.items()
                    }
                    placed.weights[device] = self._prepared(layer, on_device)
                    placed.copied[device] = self._streams[device].record_event()
            else:
                placed.weights[device] = self._prepared(layer, weights)
        return placed

    def _prepared(self, layer: int, weights: Weights) -> Weights:
        return weights if self._prepare is None else self._prepare(layer, weights)
