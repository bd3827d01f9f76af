"""Predicts the time of a sweep: a discrete-event simulation of disk, copies, decoding, compute and store.

Every operation starts when all that it needs has ended, so its end is a maximum of sums, and none ever ends
earlier because another became slower. The rules, one device standing for all, which get equal shares:

    disk      reads layers in order, one after another; a streamed layer needs a free slot, a resident one is
              read in the first sweep only. Before a sweep it reads embedding rows, after it the head.
    decode    on CPU by the reader, before its next read; on CUDA on the device, after the copy.
    copy      CUDA only, in order, beside the reading of the next layer.
    compute   a layer, once it is there and the layer before has ended. What reading and decoding take from
              the processor that computes is added to the layer before the one being read.
    store     hidden states on their way from and to RAM or disk, after computing; then the slot is free.

All sweeps between the first and the last are alike: once the state at the end of one repeats, the clocks jump
to the last, which is exact. Knows no bytes and no rates.
Independent check (tests): tiny cases by hand, limits, monotonicity.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from strata.engine.plan.times import LayerTimes, SweepTimes

Resource = Literal["disk", "decode", "copy", "compute", "store"]
RESOURCES: tuple[Resource, ...] = ("disk", "decode", "copy", "compute", "store")
SAME_STATE = 1e-9
"""Sweeps whose final states differ by less than this share of a sweep are alike."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One operation: what did it, for which sweep and layer (-1: between sweeps), from when to when."""

    resource: Resource
    sweep: int
    layer: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class SimulatedSweep:
    """The prediction.

    Attributes:
        total_s: from the first read to the end of the last sweep.
        busy_s: seconds by resource; each is at most `total_s`.
        stall_s: seconds in which a device waited for weights.
        timeline: all operations, when asked for.
    """

    total_s: float
    busy_s: dict[Resource, float]
    stall_s: float
    timeline: tuple[Interval, ...] = ()

    @property
    def bottleneck(self) -> Resource:
        """The resource that is busy longest."""
        return max(RESOURCES, key=lambda resource: self.busy_s[resource])


def simulate_sweep(times: SweepTimes, *, record: bool = False, extrapolate: bool = True) -> SimulatedSweep:
    """Plays all sweeps.

    Args:
        times: the layers' times.
        record: keeps the timeline, for which every sweep is played.
        extrapolate: False plays every sweep.
    """
    play = _Play(times=times, record=record)
    sweep, before = 0, None
    while sweep < times.num_sweeps:
        play.run_sweep(sweep)
        after = play.mark(sweep)
        skipped = times.num_sweeps - 1 - sweep - after.read_ahead[0]
        if extrapolate and not record and before is not None and skipped > 0 and after.repeats(before):
            play.skip(skipped, before, after)
            sweep += skipped
        sweep, before = sweep + 1, after
    return SimulatedSweep(
        total_s=play.now_s, busy_s=play.busy_s, stall_s=play.stall_s, timeline=tuple(play.timeline)
    )


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """The state at the end of a sweep.

    `pending_s` are the moments that still matter, counted from that end; `read_ahead` is the layer to read
    next and how many sweeps ahead it is.
    """

    now_s: float
    busy_s: dict[Resource, float]
    stall_s: float
    pending_s: tuple[float, ...]
    read_ahead: tuple[int, int]

    def repeats(self, before: _Mark) -> bool:
        """Whether the next sweep will be like this one."""
        if self.read_ahead != before.read_ahead or len(self.pending_s) != len(before.pending_s):
            return False
        allowed_s = SAME_STATE * (self.now_s - before.now_s)
        pairs = zip(self.pending_s, before.pending_s, strict=True)
        return all(abs(one - other) <= allowed_s for one, other in pairs)


@dataclass(kw_only=True, eq=False)
class _Play:
    """The clocks of a simulation under way.

    `now_s` is the devices' clock. `placed_s` are the moments at which layers that were read and not yet used
    are there, `slots_s` those since which slots are free; `next_read` is the sweep and layer to read next.
    """

    times: SweepTimes
    record: bool
    now_s: float = 0.0
    stall_s: float = 0.0
    disk_free_s: float = 0.0
    reader_free_s: float = 0.0
    device_free_s: float = 0.0
    next_read: tuple[int, int] = (0, 0)
    placed_s: deque[float] = field(default_factory=deque)
    busy_s: dict[Resource, float] = field(default_factory=lambda: dict.fromkeys(RESOURCES, 0.0))
    timeline: list[Interval] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots_s = deque([0.0] * self.times.num_slots)

    def run_sweep(self, sweep: int) -> None:
        """All layers, and what is read before and after them."""
        self._read_between(sweep, self.times.embedding_s)
        for layer, times in enumerate(self.times.layers):
            self._read_ahead()
            is_read = _is_read(times, sweep)
            start_s = max(self.now_s, self.placed_s.popleft()) if is_read else self.now_s
            self.stall_s += start_s - self.now_s
            compute_s = times.compute_s + self._interference_s(sweep, layer)
            computed_s = self._occupy("compute", sweep, layer, start_s, compute_s)
            self.now_s = self._occupy("store", sweep, layer, computed_s, times.store_s)
            if not times.resident:
                self.slots_s.append(self.now_s)
        self._read_between(sweep, self.times.head_s)

    def mark(self, sweep: int) -> _Mark:
        """The state after a sweep; moments that have passed matter no more."""
        clocks = (self.disk_free_s, self.reader_free_s, self.device_free_s, *self.placed_s, *self.slots_s)
        return _Mark(
            now_s=self.now_s,
            busy_s=dict(self.busy_s),
            stall_s=self.stall_s,
            pending_s=tuple(max(0.0, moment - self.now_s) for moment in clocks),
            read_ahead=(self.next_read[0] - sweep, self.next_read[1]),
        )

    def skip(self, count: int, before: _Mark, after: _Mark) -> None:
        """Moves all clocks on by `count` sweeps like the one between two marks."""
        shift_s = count * (after.now_s - before.now_s)
        self.now_s += shift_s
        self.disk_free_s += shift_s
        self.reader_free_s += shift_s
        self.device_free_s += shift_s
        self.placed_s = deque(moment + shift_s for moment in self.placed_s)
        self.slots_s = deque(moment + shift_s for moment in self.slots_s)
        self.next_read = (self.next_read[0] + count, self.next_read[1])
        self.stall_s += count * (after.stall_s - before.stall_s)
        for name in RESOURCES:
            self.busy_s[name] += count * (after.busy_s[name] - before.busy_s[name])

    def _read_ahead(self) -> None:
        """Reads as far as slots are free."""
        while self.next_read[0] < self.times.num_sweeps:
            sweep, layer = self.next_read
            times = self.times.layers[layer]
            if _is_read(times, sweep):
                if not times.resident and not self.slots_s:
                    return
                free_s = 0.0 if times.resident else self.slots_s.popleft()
                self.placed_s.append(self._place(sweep, layer, times, free_s))
            self.next_read = (sweep, layer + 1) if layer + 1 < len(self.times.layers) else (sweep + 1, 0)

    def _place(self, sweep: int, layer: int, times: LayerTimes, free_s: float) -> float:
        """Reads, copies and decodes a layer; returns when it can be used."""
        again = sweep > 0 and times.read_again_s is not None
        read_s = times.read_again_s if again and times.read_again_s is not None else times.read_s
        start_s = max(free_s, self.reader_free_s, self.disk_free_s)
        self.disk_free_s = self.reader_free_s = self._occupy("disk", sweep, layer, start_s, read_s)
        if self.times.decode_by_reader:
            self.reader_free_s = self._occupy("decode", sweep, layer, self.disk_free_s, times.decode_s)
            return self.reader_free_s
        start_s = max(self.disk_free_s, self.device_free_s)
        copied_s = self._occupy("copy", sweep, layer, start_s, times.copy_s)
        self.device_free_s = self._occupy("decode", sweep, layer, copied_s, times.decode_s)
        return self.device_free_s

    def _read_between(self, sweep: int, seconds: float) -> None:
        start_s = max(self.now_s, self.disk_free_s) if seconds else self.now_s
        self.now_s = self._occupy("disk", sweep, -1, start_s, seconds)
        self.disk_free_s = max(self.disk_free_s, self.now_s) if seconds else self.disk_free_s

    def _interference_s(self, sweep: int, layer: int) -> float:
        """What the reading of the layer after this one takes."""
        after = (sweep, layer + 1) if layer + 1 < len(self.times.layers) else (sweep + 1, 0)
        times = self.times.layers[after[1]]
        is_read = after[0] < self.times.num_sweeps and _is_read(times, after[0])
        return times.interference_s if is_read else 0.0

    def _occupy(self, resource: Resource, sweep: int, layer: int, start_s: float, seconds: float) -> float:
        """Uses a resource from a moment on; returns the end."""
        self.busy_s[resource] += seconds
        if self.record and seconds:
            self.timeline.append(
                Interval(
                    resource=resource, sweep=sweep, layer=layer, start_s=start_s, end_s=start_s + seconds
                )
            )
        return start_s + seconds


def _is_read(times: LayerTimes, sweep: int) -> bool:
    return sweep == 0 or not times.resident
