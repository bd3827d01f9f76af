"""The layer stream alone, over a loader that counts: order, slots, buffers, sharing, and how it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from strata.engine.model.layer_loader import RawLayer
from strata.engine.sweep.coordinator import AbortedError, Coordinator
from strata.engine.sweep.layer_stream import LayerStream, ReadingOrder

pytestmark = pytest.mark.timeout(30)

CPU = torch.device("cpu")
WEIGHTS_A_LAYER = 64
NOT_USED = -1.0


@dataclass
class CountingLoader:
    """Stands for LayerLoader: a layer is its own number, written into the buffer it is given.

    `order` lists the layers as they were read, `decoded` as they were decoded, `buffers` where each streamed
    one was put. `in_use` counts the streamed layers that were read and not yet given back.
    """

    num_layers: int = 5
    fail_at: int | None = None
    order: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)
    in_use: int = 0
    most_in_use: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def buffer_bytes(self, layer: int) -> int:
        return WEIGHTS_A_LAYER * 4

    def converted_bytes(self, layer: int) -> int:
        return WEIGHTS_A_LAYER * 4

    def read(self, layer: int, buffer: torch.Tensor | None = None) -> RawLayer:
        with self.changed:
            if len(self.order) == self.fail_at:
                raise OSError("the disk is gone")
            self.order.append(layer)
            if buffer is not None:
                self.buffers.append(buffer.data_ptr())
                self.in_use += 1
                self.most_in_use = max(self.most_in_use, self.in_use)
            self.changed.notify_all()
        stored = torch.empty(WEIGHTS_A_LAYER) if buffer is None else buffer.view(torch.float32)
        return {"weight": [{"weight": stored.fill_(layer)}]}

    def decode(self, layer: int, raw: RawLayer, out: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.decoded.append(layer)
        stored = raw["weight"][0]["weight"]
        decoded = torch.empty(WEIGHTS_A_LAYER) if out is None else out.view(torch.float32)
        return {"weight": decoded.copy_(stored)}

    def let_go(self) -> None:
        """Called right before a streamed layer is given back, hence before its slot can be filled again."""
        with self.changed:
            self.in_use -= 1

    def wait_for_reads(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.order) >= count, timeout=10)


def make_stream(
    loader: CountingLoader,
    coordinator: Coordinator,
    *,
    sweeps: int | Iterable[Sequence[int]] = 1,
    num_slots: int = 2,
    resident: frozenset[int] = frozenset(),
    devices: Sequence[torch.device] = (CPU,),
    kept: dict[int, dict[torch.device, dict[str, torch.Tensor]]] | None = None,
) -> LayerStream:
    """A stream of all of a loader's layers, in so many sweeps or in those given."""
    if isinstance(sweeps, int):
        sweeps = [range(loader.num_layers)] * sweeps
    order = ReadingOrder(sweeps=sweeps, num_slots=num_slots, resident=resident)
    return LayerStream(loader, order, devices, coordinator, kept)


def consume(stream: LayerStream, loader: CountingLoader, num_sweeps=1, num_layers=5, resident=frozenset()):
    """One worker's pass over all layers, which checks what it is given before and after a while of use."""
    for sweep in range(num_sweeps):
        for layer in range(num_layers):
            weights = stream.take(sweep, layer, CPU)["weight"]
            assert (weights == layer).all()
            time.sleep(0.001)
            assert (weights == layer).all(), "overwritten while in use"
            if layer not in resident:
                weights.fill_(NOT_USED)
                loader.let_go()
            stream.give_back(sweep, layer, CPU)


def assert_threads_end(before: set[threading.Thread]) -> None:
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


@pytest.mark.parametrize("num_slots", [2, 3])
@pytest.mark.parametrize("resident", [frozenset(), frozenset({1, 3}), frozenset(range(5))], ids=len)
@pytest.mark.parametrize("num_sweeps", [1, 3])
def test_order_slots_and_buffers(num_sweeps, resident, num_slots):
    before = set(threading.enumerate())
    loader, coordinator = CountingLoader(), Coordinator()
    stream = make_stream(loader, coordinator, sweeps=num_sweeps, resident=resident, num_slots=num_slots)
    coordinator.start(stream.read_all, "layer-reader")
    coordinator.run([lambda: consume(stream, loader, num_sweeps, resident=resident)], "sweep")
    streamed = [layer for layer in range(5) if layer not in resident]
    assert loader.order == list(range(5)) + streamed * (num_sweeps - 1)
    assert loader.most_in_use <= num_slots
    assert len(set(loader.buffers)) <= num_slots
    assert len(loader.buffers) == len(streamed) * num_sweeps
    assert_threads_end(before)


@pytest.mark.parametrize("num_slots", [2, 3])
def test_the_next_layers_are_read_while_one_is_used_and_no_more(num_slots):
    loader, coordinator = CountingLoader(), Coordinator()
    stream = make_stream(loader, coordinator, sweeps=2, num_slots=num_slots)
    coordinator.start(stream.read_all, "layer-reader")
    for position in range(10):
        sweep, layer = divmod(position, 5)
        stream.take(sweep, layer, CPU)
        expected = min(position + num_slots, 10)
        loader.wait_for_reads(expected)
        time.sleep(0.005)
        assert len(loader.order) == expected, "read ahead of the slots"
        loader.let_go()
        stream.give_back(sweep, layer, CPU)
    assert loader.most_in_use == num_slots
    assert len(set(loader.buffers)) == num_slots


def test_sweeps_may_run_backwards_and_be_asked_for_later():
    loader, coordinator = CountingLoader(), Coordinator()
    asked: list[range] = [range(5)]

    def sweeps():
        for number in range(2):
            coordinator.wait_for(lambda: len(asked) > number)  # noqa: B023  (read before the next one)
            yield asked[number]

    stream = make_stream(loader, coordinator, sweeps=sweeps(), resident=frozenset({2}))
    coordinator.start(stream.read_all, "layer-reader")
    for number, layers in enumerate((range(5), range(3, -1, -1))):
        if number:
            coordinator.update(lambda: asked.append(range(3, -1, -1)))
        for layer in layers:
            assert (stream.take(number, layer, CPU)["weight"] == layer).all()
            loader.let_go()
            stream.give_back(number, layer, CPU)
    assert loader.order == [0, 1, 2, 3, 4, 3, 1, 0]
    coordinator.stop()


def test_a_resident_layer_is_the_same_memory_in_every_sweep():
    loader, coordinator = CountingLoader(), Coordinator()
    stream = make_stream(loader, coordinator, sweeps=2, resident=frozenset(range(5)))
    coordinator.start(stream.read_all, "layer-reader")
    seen = {}
    for sweep in range(2):
        for layer in range(5):
            weights = stream.take(sweep, layer, CPU)["weight"]
            assert seen.setdefault(layer, weights.data_ptr()) == weights.data_ptr()
            assert (weights == layer).all()
            stream.give_back(sweep, layer, CPU)
    assert loader.order == list(range(5))
    assert loader.buffers == []


def test_two_workers_share_one_read_and_one_decoding():
    loader, coordinator = CountingLoader(), Coordinator()
    stream = make_stream(loader, coordinator, devices=[CPU, CPU], resident=frozenset({0}))
    barrier = threading.Barrier(2)

    def work(worker: int):
        for layer in range(5):
            weights = stream.take(0, layer, CPU)["weight"]
            assert (weights == layer).all()
            if worker == layer % 2:
                # The slower worker: the layer must outlive the other one's giving back.
                time.sleep(0.01)
                assert (weights == layer).all()
            if barrier.wait(10) == 0 and layer > 0:
                loader.let_go()
            barrier.wait(10)
            stream.give_back(0, layer, CPU)

    coordinator.start(stream.read_all, "layer-reader")
    coordinator.run([lambda: work(0), lambda: work(1)], "sweep")
    assert loader.order == loader.decoded == list(range(5))
    assert loader.most_in_use <= 2


def test_one_worker_giving_back_does_not_free_a_layer_the_other_needs():
    loader, coordinator = CountingLoader(num_layers=4), Coordinator()
    stream = make_stream(loader, coordinator, devices=[CPU, CPU])
    coordinator.start(stream.read_all, "layer-reader")
    weights = stream.take(0, 0, CPU)["weight"]
    stream.give_back(0, 0, CPU)
    loader.wait_for_reads(2)
    time.sleep(0.02)
    assert loader.order == [0, 1]
    assert (stream.take(0, 0, CPU)["weight"] == 0).all()
    assert (weights == 0).all()
    stream.give_back(0, 0, CPU)
    loader.wait_for_reads(3)
    coordinator.fail(RuntimeError("done"))


def test_decoded_weights_go_into_the_slots_own_buffers():
    loader, coordinator = CountingLoader(), Coordinator()
    stream = make_stream(loader, coordinator)
    coordinator.start(stream.read_all, "layer-reader")
    places = set()
    for layer in range(5):
        weights = stream.take(0, layer, CPU)["weight"]
        places.add(weights.data_ptr())
        assert weights.data_ptr() not in loader.buffers
        stream.give_back(0, layer, CPU)
    assert len(places) == 2


@pytest.mark.parametrize("fail_at", [0, 1, 4])
def test_a_failing_reader_wakes_every_worker(fail_at):
    before = set(threading.enumerate())
    loader, coordinator = CountingLoader(fail_at=fail_at), Coordinator()
    stream = make_stream(loader, coordinator, devices=[CPU, CPU])

    def work():
        for layer in range(5):
            stream.take(0, layer, CPU)
            stream.give_back(0, layer, CPU)

    coordinator.start(stream.read_all, "layer-reader")
    with pytest.raises(OSError, match="the disk is gone"):
        coordinator.run([work, work], "sweep")
    assert_threads_end(before)


def test_a_failing_worker_wakes_the_other_and_the_reader():
    before = set(threading.enumerate())
    loader, coordinator = CountingLoader(), Coordinator()
    stream = make_stream(loader, coordinator, devices=[CPU, CPU])

    def work(fails: bool):
        for layer in range(5):
            stream.take(0, layer, CPU)
            if fails and layer == 1:
                raise RuntimeError("out of luck")
            stream.give_back(0, layer, CPU)

    coordinator.start(stream.read_all, "layer-reader")
    with pytest.raises(RuntimeError, match="out of luck"):
        coordinator.run([lambda: work(False), lambda: work(True)], "sweep")
    assert_threads_end(before)


def test_the_first_error_is_the_one_reported():
    coordinator = Coordinator()
    coordinator.fail(ValueError("first"))
    coordinator.fail(KeyError("second"))
    with pytest.raises(ValueError, match="first"):
        coordinator.raise_failure()
    with pytest.raises(AbortedError):
        coordinator.check()
    with pytest.raises(AbortedError):
        coordinator.wait_for(lambda: True)


def test_a_wait_ends_when_its_condition_comes_true():
    coordinator, facts, woken = Coordinator(), set(), threading.Event()

    def wait():
        coordinator.wait_for(lambda: "ready" in facts)
        woken.set()

    thread = coordinator.start(wait, "waiter")
    coordinator.update(lambda: facts.add("something else"))
    assert not woken.wait(0.02)
    coordinator.update(lambda: facts.add("ready"))
    assert woken.wait(10)
    thread.join(10)
    coordinator.raise_failure()
