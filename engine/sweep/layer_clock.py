"""Times one layer of the workers of a thread, and notes it on the sweep's track."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter

from strata.engine.results.timeline import Track
from strata.engine.sweep.lane_worker import LaneWorker


class LayerClock:
    """Starts when workers begin to wait for a layer's weights.

    Args:
        workers: of one thread, which take the layer one after the other.
        track: where it is noted; None for nowhere.
        place: what the thread's device, or its lane of it, is called there.
    """

    def __init__(self, workers: Sequence[LaneWorker], track: Track | None, place: str) -> None:
        self._workers, self._track, self._place = workers, track, place
        self._store_s = self._total_store_s()
        self._waits_since = self._computes_since = perf_counter()

    def has_weights(self) -> None:
        """Says that the wait is over."""
        self._computes_since = perf_counter()

    def note(self, group: int, layer: int) -> None:
        """Notes the wait, the computing and the store's part of it; the layer is done."""
        if self._track is None:
            return
        note = partial(self._track.note, group=group, layer=layer, device=self._place)
        waits_since, computes_since = self._waits_since, self._computes_since
        store_s = self._total_store_s() - self._store_s
        note("compute", started=computes_since)
        note("wait", started=waits_since, seconds=computes_since - waits_since)
        note("store", started=computes_since, seconds=store_s)

    def _total_store_s(self) -> float:
        return sum(worker.store_s for worker in self._workers)
