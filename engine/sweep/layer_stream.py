"""Reads the layers of a run ahead of the workers: a thread, reusable buffers, a copy stream on CUDA.

Flow of one streamed layer: a free slot -> its host buffer is filled from disk -> (CUDA: the stored bytes are
copied to every device on a copy stream) -> decoded where they lie, on CPU into the slot's second buffer ->
every worker takes it, computes, gives it back -> the slot is free. There are `num_slots` slots, so at most
that many streamed layers are in memory, the one being computed included. Resident layers are read in the
first sweep and stay. All devices share one read. Knows nothing of what a layer is used for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from strata.engine.model.layer_loader import LayerLoader, RawLayer, Weights
from strata.engine.results.timeline import Track
from strata.engine.sweep.coordinator import Coordinator
from strata.engine.sweep.pinned import HostMemory


@dataclass(kw_only=True, eq=False)
class _Slot:
    """Host buffers, and what the devices must have done before they may be filled again.

    `memory` takes a layer's stored bytes, `decoded` (CPU) the weights that are no views of it.
    """

    memory: HostMemory
    decoded: torch.Tensor | None
    computed: list[torch.cuda.Event] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class _PlacedLayer:
    """A layer's weights on each device, and how many workers still need them."""

    slot: _Slot | None
    users_left: int
    weights: dict[torch.device, Weights] = field(default_factory=dict)
    copied: dict[torch.device, torch.cuda.Event] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadingOrder:
    """Which layers are read when, and how many are in memory.

    Attributes:
        sweeps: for each sweep, numbered from 0, the layers it takes in order; the first one takes all. Read
            in the background thread, which may wait for the next one.
        num_slots: streamed layers in memory at once: 2 or more, or 1 when only one is ever streamed.
        resident: layers that stay in memory after the first sweep.
    """

    sweeps: Iterable[Sequence[int]]
    num_slots: int
    resident: frozenset[int] = frozenset()


class LayerStream:
    """The layers of all sweeps of a run, in the order in which they are needed.

    Args:
        loader: reads a layer into host memory and decodes it on its device.
        order: which layers, when.
        devices: the devices of the workers, one entry a worker; entries may repeat.
        coordinator: what the waits go through.
        kept: weights of resident layers by layer and device; those that are there are not read, and what is
            read is put there, for a later stream.
        track: where the reading is noted.
    """

    def __init__(
        self,
        loader: LayerLoader,
        order: ReadingOrder,
        devices: Sequence[torch.device],
        coordinator: Coordinator,
        kept: dict[int, dict[torch.device, Weights]] | None = None,
        track: Track | None = None,
    ) -> None:
        self._loader, self._order, self._coordinator = loader, order, coordinator
        self._kept = {} if kept is None else kept
        self._track = track
        self._devices = list(devices)
        self._unique_devices = list(dict.fromkeys(devices))
        self._placed: dict[tuple[int, int], _PlacedLayer] = {
            (0, layer): _PlacedLayer(slot=None, users_left=len(devices), weights=weights)
            for layer, weights in self._kept.items()
        }
        self._streams = {
            # Before the kernels of a large product, which otherwise leave decoding no room until they end.
            device: torch.cuda.Stream(device, priority=-1)
            for device in self._unique_devices
            if device.type == "cuda"
        }
        streamed = [layer for layer in range(loader.num_layers) if layer not in order.resident]
        self._slots = [self._make_slot(streamed) for _ in range(order.num_slots if streamed else 0)]
        self._free_slots = list(self._slots)
        self.wait_s = 0.0
        self.read_s = 0.0

    def read_all(self) -> None:
        """The background thread's work: every layer of every sweep, in order."""
        for sweep, layer in self._needed():
            slot = None if layer in self._order.resident else self._take_slot()
            started = time.perf_counter()
            raw = self._loader.read(layer, None if slot is None else slot.memory.tensor)
            has_read = time.perf_counter()
            placed = self._place(layer, raw, slot)
            self._note(sweep, layer, started, has_read)
            self.read_s += time.perf_counter() - started
            if slot is None:
                self._kept[layer] = placed.weights
            self._coordinator.update(partial(self._placed.__setitem__, self._key(sweep, layer), placed))
            del raw, placed  # or this layer would be in memory until the next one is

    def take(self, sweep: int, layer: int, device: torch.device) -> Weights:
        """Weights of a layer on a device, once they are there. Every worker must `give_back` what it took."""
        key = self._key(sweep, layer)
        started = time.perf_counter()
        self._coordinator.wait_for(lambda: key in self._placed)
        self.wait_s += time.perf_counter() - started
        placed = self._placed[key]
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            if device in placed.copied:
                stream.wait_event(placed.copied[device])
            for weight in placed.weights[device].values():
                weight.record_stream(stream)
        return placed.weights[device]

    def give_back(self, sweep: int, layer: int, device: torch.device) -> None:
        """Says that a worker has queued its last use of a layer; the last worker frees the slot."""
        key = self._key(sweep, layer)
        if layer in self._order.resident:
            return
        placed = self._placed[key]
        assert placed.slot is not None, "streamed layers have a slot"
        if device.type == "cuda":
            event = torch.cuda.Event(blocking=True)  # whoever waits for it sleeps, and does not spin
            placed.slot.computed.append(torch.cuda.current_stream(device).record_event(event))
        self._coordinator.update(lambda: self._free(key, placed))

    def settle(self) -> None:
        """Waits for copies that are under way and gives the buffers back; the stream has ended.

        Layers that are kept may be used by a later stream.
        """
        for stream in self._streams.values():
            stream.synchronize()
        for slot in self._slots:
            slot.memory.close()

    def _needed(self) -> Iterator[tuple[int, int]]:
        for sweep, layers in enumerate(self._order.sweeps):
            for layer in layers:
                if layer not in self._kept:
                    yield sweep, layer

    def _note(self, sweep: int, layer: int, started: float, has_read: float) -> None:
        if self._track is not None:
            devices = ", ".join(map(str, self._unique_devices))
            read_s = has_read - started
            self._track.note("read", group=sweep, layer=layer, device="disk", started=started, seconds=read_s)
            self._track.note("copy", group=sweep, layer=layer, device=devices, started=has_read)

    def _key(self, sweep: int, layer: int) -> tuple[int, int]:
        return (0 if layer in self._order.resident else sweep, layer)

    def _take_slot(self) -> _Slot:
        self._coordinator.wait_for(lambda: bool(self._free_slots))
        slot = self._free_slots.pop(0)
        for event in slot.computed:
            event.synchronize()
        slot.computed.clear()
        return slot

    def _free(self, key: tuple[int, int], placed: _PlacedLayer) -> None:
        placed.users_left -= 1
        if placed.users_left == 0:
            assert placed.slot is not None
            del self._placed[key]
            placed.weights.clear()  # the slot's next layer must find no other but the one being computed
            self._free_slots.append(placed.slot)

    def _make_slot(self, streamed: Sequence[int]) -> _Slot:
        size = max((self._loader.buffer_bytes(layer) for layer in streamed), default=0)
        decoded = None
        if not self._streams:
            decoded_size = max((self._loader.converted_bytes(layer) for layer in streamed), default=0)
            decoded = torch.empty(decoded_size, dtype=torch.uint8)
        device = next(iter(self._streams), torch.device("cpu"))
        return _Slot(memory=HostMemory((size,), torch.uint8, device), decoded=decoded)

    def _place(self, layer: int, raw: RawLayer, slot: _Slot | None) -> _PlacedLayer:
        placed = _PlacedLayer(slot=slot, users_left=len(self._devices))
        for device in self._unique_devices:
            if device.type == "cuda":
                with torch.cuda.stream(self._streams[device]):
                    placed.weights[device] = self._loader.decode(layer, self._copy_raw(layer, raw, device))
                    placed.copied[device] = self._streams[device].record_event()
            else:
                out = None if slot is None else slot.decoded
                placed.weights[device] = self._loader.decode(layer, raw, out)
        return placed

    def _copy_raw(self, layer: int, raw: RawLayer, device: torch.device) -> RawLayer:
        """The stored tensors on a device; copies from pinned buffers do not wait."""
        return {
            name: [
                {
                    role: tensor if role in weight.host_roles else tensor.to(device, non_blocking=True)
                    for role, tensor in tensors.items()
                }
                for weight, tensors in zip(self._loader.stored_weights(layer, name), parts, strict=True)
            ]
            for name, parts in raw.items()
        }
