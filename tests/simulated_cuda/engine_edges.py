"""What torch does not see of the engine: its coordinator's lock, and files that are read into a buffer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from strata.engine.sweep.coordinator import Coordinator
from strata.engine.weights.tensor_reader import TensorReader

from .clocks import Clock, acquire, release
from .memory import host_access

_clocks: dict[int, Clock] = {}


def follow_engine() -> None:
    """Orders threads as their waits do, and counts a file's bytes as written by the thread that reads it."""
    update, wait_for = Coordinator.update, Coordinator.wait_for
    read_into = TensorReader.read_into

    def updated(coordinator: Coordinator, change: Callable[[], None]) -> None:
        clock = coordinator.__dict__.setdefault("simulated_clock", Clock())

        def ordered_change() -> None:
            acquire(clock)
            change()
            release(clock)

        update(coordinator, ordered_change)

    def waited(coordinator: Coordinator, ready: Callable[[], bool]) -> None:
        clock = coordinator.__dict__.setdefault("simulated_clock", Clock())

        def ordered_look() -> bool:
            found = ready()
            acquire(clock)
            return found

        wait_for(coordinator, ordered_look)

    def read(reader: TensorReader, tensor: object, buffer: torch.Tensor, *rest: object) -> None:
        host_access(buffer, is_write=True)
        read_into(reader, tensor, buffer, *rest)  # type: ignore[arg-type]

    Coordinator.update, Coordinator.wait_for = updated, waited  # type: ignore[method-assign]
    TensorReader.read_into = read  # type: ignore[method-assign]
