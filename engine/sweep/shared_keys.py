"""Keys and values of public tokens: computed by the first lane, layer by layer, for all other lanes.

A member's entry for a layer is [2, K, P, H], in the order of the public stream intervals. Entries live for
the whole run, since later groups need them; public tokens are few (the opening words of a template, or
few-shot examples). They wait on the host: there are machines on which a copy from card to card leaves
something else, and says nothing.
Knows nothing of how keys are computed.
"""

from __future__ import annotations

import torch

from strata.engine.sweep.coordinator import Coordinator
from strata.engine.tree.intervals import Intervals, count
from strata.engine.tree.lanes import Lane, MicroBatch, ranges_in_order


class PublicKeys:
    """Where lanes leave and find keys and values of public tokens."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._public: Intervals = ()
        self._pieces: dict[tuple[str, int], list[torch.Tensor]] = {}
        self._whole: dict[tuple[str, int], torch.Tensor] = {}

    def publish(
        self, member: str, layer: int, lane: Lane, batch: MicroBatch, key_values: torch.Tensor
    ) -> None:
        """Leaves the public part of a micro-batch's key space [2, K, C, H], if the lane publishes any.

        The public tokens are the publishing lane's first rows.
        """
        num_public = count(lane.public) if lane.publishes else 0
        rows = min(batch.num_rows, num_public - batch.first_row)
        if rows <= 0:
            return
        first = batch.num_carried
        pieces = self._pieces.setdefault((member, layer), [])
        pieces.append(key_values[:, :, first : first + rows].clone())
        if batch.first_row + rows == num_public:
            whole = _on_host(torch.cat(pieces, dim=2))
            self._public = lane.public
            self._coordinator.update(lambda: self._whole.update({(member, layer): whole}))
            del self._pieces[member, layer]

    def take(self, member: str, layer: int, lane: Lane, device: torch.device) -> torch.Tensor | None:
        """Keys and values [2, K, C, H] that the lane's first micro-batch carries, once they are there."""
        if lane.publishes or not lane.public:
            return None
        self._coordinator.wait_for(lambda: (member, layer) in self._whole)
        whole = self._whole[member, layer]
        ranges = ranges_in_order(lane.public, self._public)
        on_device = whole.to(device, non_blocking=True)
        return torch.cat([on_device[:, :, start:end] for start, end in ranges], dim=2)

    def find(self, member: str, layer: int) -> torch.Tensor | None:
        """Keys and values [2, K, P, H] of all public tokens, where they are known."""
        return self._whole.get((member, layer))

    def restore(self, member: str, layer: int, lane: Lane, key_values: torch.Tensor) -> None:
        """Takes what an earlier run has published [2, K, P, H]; `lane` is the one that publishes."""
        self._public = lane.public
        self._coordinator.update(lambda: self._whole.update({(member, layer): key_values}))


def _on_host(states: torch.Tensor) -> torch.Tensor:
    """The states in pinned memory, once they are there; themselves on the CPU."""
    if not states.is_cuda:
        return states
    waiting = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
    waiting.copy_(states, non_blocking=True)
    torch.cuda.current_stream(states.device).synchronize()
    return waiting
