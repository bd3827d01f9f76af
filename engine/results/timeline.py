"""When a sweep read, copied, computed and stored, layer by layer: a bounded account kept in memory.

Two readings of the clock a layer and device, so noting slows no sweep. Times are the host's: what a GPU has
been given to do may still be running when its span ends. Knows no sweep.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

from strata.engine.files import write_text_atomically

Work = Literal["read", "copy", "wait", "compute", "store"]
"""`read`: a layer's stored bytes from disk. `copy`: to the devices, decoding included. `wait`: of a worker
for weights. `compute`: a layer over all micro-batches of a device, the store's part included. `store`:
hidden states out of and into their store."""

MAX_SPANS = 10_000
"""Of all sweeps together."""
MAX_SPANS_A_SWEEP = 4_000
"""So that a long first sweep leaves room for later ones."""


class Span(NamedTuple):
    """One thing done: what, on which layer, in which sweep and group of it, where, and from when to when.

    Seconds count from the timeline's start. A `store` span begins with its layer and is as long as all reads
    and writes of that layer took, which in truth are spread over it.
    """

    work: Work
    sweep: int
    group: int
    layer: int
    device: str
    start_s: float
    end_s: float


@dataclass(kw_only=True, eq=False)
class Timeline:
    """The spans of some sweeps.

    Attributes:
        sweeps: what each is called: the members that it scores.
        spans: in the order in which they ended.
        num_dropped: further ones, for which there was no room.
        started: `perf_counter()` when the timeline began.
    """

    sweeps: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    num_dropped: int = 0
    started: float = field(default_factory=perf_counter)

    def begin(self, name: str) -> Track:
        """The track of a further sweep."""
        self.sweeps.append(name)
        return Track(timeline=self, sweep=len(self.sweeps) - 1)

    def write(self, path: Path) -> None:
        """Leaves the spans in the Trace Event Format, which Perfetto and chrome://tracing open.

        Raises:
            OutputError: it cannot be written.
        """
        events = list(self._trace_events())
        text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "droppedSpans": self.num_dropped})
        write_text_atomically(path, text + "\n")

    def _trace_events(self) -> Iterator[dict[str, Any]]:
        """A process a sweep, a thread a device and kind of work (complete and metadata events)."""
        for place, name in enumerate(self.sweeps):
            yield {"name": "process_name", "ph": "M", "pid": place, "args": {"name": name}}
        rows = dict.fromkeys(f"{span.work} {span.device}" for span in self.spans)
        thread_of = {row: place for place, row in enumerate(rows)}
        for row, thread in thread_of.items():
            for place in range(len(self.sweeps)):
                yield {
                    "name": "thread_name",
                    "ph": "M",
                    "pid": place,
                    "tid": thread,
                    "args": {"name": row},
                }
        for span in self.spans:
            yield {
                "name": f"layer {span.layer}",
                "cat": span.work,
                "ph": "X",
                "ts": round(1e6 * span.start_s, 1),
                "dur": round(1e6 * (span.end_s - span.start_s), 1),
                "pid": span.sweep,
                "tid": thread_of[f"{span.work} {span.device}"],
                "args": {"group": span.group},
            }


@dataclass(kw_only=True, eq=False)
class Track:
    """Where one sweep's threads note what they did.

    Attributes:
        timeline: that keeps the spans.
        sweep: the sweep's number.
        num_spans: noted so far.
    """

    timeline: Timeline
    sweep: int
    num_spans: int = 0

    def note(
        self,
        work: Work,
        *,
        group: int,
        layer: int,
        device: str,
        started: float,
        seconds: float | None = None,
    ) -> None:
        """Takes down what began at `started` (perf_counter) and ends now, or after so many seconds."""
        if self.num_spans >= MAX_SPANS_A_SWEEP or len(self.timeline.spans) >= MAX_SPANS:
            self.timeline.num_dropped += 1
            return
        self.num_spans += 1
        start_s = started - self.timeline.started
        end_s = perf_counter() - self.timeline.started if seconds is None else start_s + seconds
        self.timeline.spans.append(Span(work, self.sweep, group, layer, device, start_s, end_s))
