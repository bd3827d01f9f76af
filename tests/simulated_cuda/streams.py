"""Streams and events: who waits for whom. They stand for torch.cuda.Stream and torch.cuda.Event."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from .accounts import ACCOUNTS
from .clocks import LOCK, Actor, Clock, acquire, this_thread

_numbers = itertools.count(1)
_all_streams: weakref.WeakSet[Stream] = weakref.WeakSet()
_defaults: dict[int, Stream] = {}
_local = threading.local()


class Stream(Actor):
    """Work that a device does in order."""

    def __init__(self, device: Any = None, priority: int = 0, **settings: Any) -> None:
        self.device = device_of(device)
        self.priority = priority
        super().__init__(f"stream {next(_numbers)} of {self.device}")
        _all_streams.add(self)

    def launch(self) -> Stream:
        """Queues a piece of work: it begins after whatever this thread has seen."""
        with LOCK:
            self.clock.join(this_thread().clock)
            self.step()
        return self

    def wait_event(self, event: Event) -> None:
        """What is queued later begins after an event."""
        with LOCK:
            self.clock.join(this_thread().clock)
            self.clock.join(event.clock)

    def wait_stream(self, stream: Stream) -> None:
        """What is queued later begins after what another stream has queued."""
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        """An event that has happened when the work queued so far is done."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """The host waits."""
        self.hold_host("Stream.synchronize")

    def hold_host(self, what: str) -> None:
        """The host waits for the work queued so far, which is counted."""
        ACCOUNTS.count(ACCOUNTS.waits, what)
        acquire(self.clock)

    def query(self) -> bool:
        """Everything is done as soon as it is queued."""
        return True


class Event:
    """A point in a stream's work."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        self.blocking = blocking
        self.clock = Clock()

    def record(self, stream: Stream | None = None) -> None:
        """The event happens when the stream's work so far is done."""
        stream = stream or current_stream()
        with LOCK:
            stream.clock.join(this_thread().clock)
            self.clock = Clock(stream.clock)

    def wait(self, stream: Stream | None = None) -> None:
        """A stream goes on after the event."""
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        """The host waits for the event."""
        ACCOUNTS.count(ACCOUNTS.waits, "Event.synchronize")
        acquire(self.clock)

    def query(self) -> bool:
        """It has happened."""
        return True

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds; a simulated machine has no speed."""
        return 1.0


def device_of(device: Any = None) -> torch.device:
    """A CUDA device with its index, of an index, a name, a device or None for the current one."""
    if device is None or isinstance(device, int):
        return torch.device("cuda", current_device() if device is None else device)
    device = torch.device(device)
    return torch.device("cuda", current_device() if device.index is None else device.index)


def current_device() -> int:
    """The index of this thread's device."""
    return getattr(_local, "device", 0)


def set_device(device: Any) -> None:
    """Makes a device this thread's."""
    _local.device = device_of(device).index


def default_stream(device: Any = None) -> Stream:
    """The stream that all threads use which choose none."""
    index = device_of(device).index
    with LOCK:
        if index not in _defaults:
            _defaults[index] = Stream(index)
            _defaults[index].name = f"default stream of cuda:{index}"
        return _defaults[index]


def current_stream(device: Any = None) -> Stream:
    """The stream that this thread queues work on."""
    device = device_of(device)
    return getattr(_local, "streams", {}).get(device.index) or default_stream(device)


@contextlib.contextmanager
def use_stream(stream: Stream | None) -> Iterator[None]:
    """Makes a stream this thread's current one, and its device too."""
    if stream is None:
        yield
        return
    streams = _local.__dict__.setdefault("streams", {})
    index, device = stream.device.index, current_device()
    before = streams.get(index)
    streams[index], _local.device = stream, index
    try:
        yield
    finally:
        streams[index], _local.device = before, device


@contextlib.contextmanager
def use_device(device: Any) -> Iterator[None]:
    """Makes a device this thread's current one."""
    before = current_device()
    set_device(device)
    try:
        yield
    finally:
        _local.device = before


def synchronize(device: Any = None) -> None:
    """The host waits for everything on a device."""
    ACCOUNTS.count(ACCOUNTS.waits, "synchronize")
    device = device_of(device)
    with LOCK:
        for stream in list(_all_streams):
            if stream.device == device:
                acquire(stream.clock)
