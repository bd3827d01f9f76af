"""What happened before what: a vector clock for every host thread and every stream. Knows no tensors.

Source: Mattern 1988, Virtual Time and Global States of Distributed Systems; races as in Flanagan and Freund
2009, FastTrack.
"""

from __future__ import annotations

import threading
import weakref

LOCK = threading.RLock()
"""Held while clocks, accesses or counts change."""


class Clock(dict["Actor", int]):
    """Actor -> how many of its steps happened before."""

    def join(self, other: Clock) -> None:
        """Takes in all that happened before another clock's point."""
        for actor, epoch in other.items():
            if epoch > self.get(actor, 0):
                self[actor] = epoch


class Actor:
    """A host thread or a stream: something whose steps happen in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clock = Clock()
        self.epoch = 0

    def step(self) -> None:
        """Begins a step; what others see of this actor from now on includes the steps before."""
        self.epoch += 1
        self.clock[self] = self.epoch

    def has_seen(self, other: Actor, epoch: int) -> bool:
        """Whether a step of another actor happened before this one's present step."""
        return self.clock.get(other, 0) >= epoch

    def __repr__(self) -> str:
        return self.name


_threads: weakref.WeakKeyDictionary[threading.Thread, Actor] = weakref.WeakKeyDictionary()


def this_thread() -> Actor:
    """The host thread that calls."""
    thread = threading.current_thread()
    with LOCK:
        actor = _threads.get(thread)
        if actor is None:
            actor = _threads[thread] = Actor(f"thread {thread.name}")
            actor.clock.join(getattr(thread, "_begins_after", Clock()))
            actor.step()
        return actor


def acquire(clock: Clock) -> None:
    """This thread goes on after what a lock, an event or a stream has seen."""
    with LOCK:
        this_thread().clock.join(clock)


def release(clock: Clock) -> None:
    """What this thread did happens before whatever acquires the clock later."""
    with LOCK:
        actor = this_thread()
        clock.join(actor.clock)
        actor.step()


def note_start(thread: threading.Thread) -> None:
    """A thread is about to be started by this one."""
    begins_after = Clock()
    release(begins_after)
    thread._begins_after = begins_after  # type: ignore[attr-defined]


def note_end() -> None:
    """This thread is about to end."""
    ends_after = Clock()
    release(ends_after)
    threading.current_thread()._ends_after = ends_after  # type: ignore[attr-defined]


def note_joined(thread: threading.Thread) -> None:
    """This thread has waited for the end of another one."""
    acquire(getattr(thread, "_ends_after", Clock()))
