"""What the lanes of a run share, and the workers of a group. Runs nothing.

Flow: jobs of one base -> `share_sweep`: the layers in the order in which they are read, public keys and
readouts a job -> `fill_group`: a worker a device, its stores filled with embeddings, or with the hidden
states that a killed run has kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from strata.engine.model.embedding import read_embedding
from strata.engine.model.open_model import OpenModel
from strata.engine.plan.sweep_job import SweepJob
from strata.engine.plan.sweep_plan import readout_dtype
from strata.engine.results.timeline import Track
from strata.engine.sweep.coordinator import Coordinator
from strata.engine.sweep.hidden_store import StoreShape, TimedStore, make_store
from strata.engine.sweep.kept_states import Keeper
from strata.engine.sweep.lane_worker import LaneWorker
from strata.engine.sweep.layer_stream import LayerStream, ReadingOrder
from strata.engine.sweep.readouts import Readouts, Tap
from strata.engine.sweep.shared_keys import PublicKeys
from strata.engine.tree.lanes import token_ids_of

Advance = Callable[[int], None]
"""Told of the number of tokens after each micro-batch of each layer, for a progress bar."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedByLanes:
    """What the lanes of one job have in common."""

    job: SweepJob
    public: PublicKeys
    readouts: Readouts


@dataclass(kw_only=True, eq=False)
class SweepShared:
    """What the workers of a run have in common; `base` is the open model, whose members are the jobs'."""

    base: OpenModel
    parts: Sequence[SharedByLanes]
    folder: Path
    stream: LayerStream
    coordinator: Coordinator
    norm: Mapping[str, torch.Tensor] | None
    advance: Advance
    tap: Tap | None
    track: Track | None
    keeper: Keeper | None

    def first_layer(self, group: int) -> int:
        """Where a group begins: of the first one, hidden states may have been kept."""
        return self.keeper.next_layer if self.keeper is not None and group == 0 else 0


def share_sweep(
    jobs: Sequence[SweepJob],
    folder: Path,
    advance: Advance,
    tap: Tap | None,
    track: Track | None,
    keeper: Keeper | None,
) -> SweepShared:
    """What the workers of jobs of one base, and of one plan, have in common; see `run_sweep`."""
    job, coordinator = jobs[0], Coordinator()
    model = job.model
    # A job that was planned before another one ran has no memory for what that one left.
    for layer in set(model.resident) - set(job.plan.resident_layers):
        del model.resident[layer]
    devices = [device for _, device in job.workers]
    num_layers, num_groups = model.checkpoint.num_layers, len(job.groups)
    num_streamed = num_layers - len(job.plan.resident_layers)
    order = ReadingOrder(
        sweeps=[range(0 if keeper is None else keeper.next_layer, num_layers)]
        + [range(num_layers)] * (num_groups - 1),
        num_slots=min(job.plan.num_slots, num_streamed * num_groups),
        resident=frozenset(job.plan.resident_layers),
    )
    return SweepShared(
        base=model,
        parts=[
            SharedByLanes(job=one, public=PublicKeys(coordinator), readouts=_make_readouts(one))
            for one in jobs
        ],
        folder=folder,
        stream=LayerStream(model.loader, order, devices, coordinator, model.resident, track),
        coordinator=coordinator,
        norm=_read_norm(model) if model.normalizes else None,
        advance=advance,
        tap=tap,
        track=track,
        keeper=keeper,
    )


def _make_readouts(job: SweepJob) -> Readouts:
    scored, dtype = job.scored_tree.scored, readout_dtype(job.model.dtype)
    size = (len(scored), job.model.checkpoint.config.hidden_size)
    return Readouts(scored=scored, rows={name: torch.empty(size, dtype=dtype) for name in job.members})


def _read_norm(model: OpenModel) -> dict[str, torch.Tensor]:
    checkpoint = model.checkpoint
    names = [name for name in checkpoint.weights if name.startswith("norm.")]
    return {name.removeprefix("norm."): checkpoint.require_rows(name).read(model.reader) for name in names}


def fill_group(shared: SweepShared, part: int, group: int) -> list[LaneWorker]:
    """The workers of a job's group, their stores filled with embeddings or what was kept of a later layer."""
    one, num_layers = shared.parts[part], shared.first_layer(group)
    workers = _make_workers(shared, one, group)
    with torch.inference_mode():
        if shared.keeper is not None and num_layers:
            for lane, worker in enumerate(workers):
                shared.keeper.fill(part, lane, worker, one.public)
            num_tokens = sum(worker.lane.num_tokens for worker in workers)
            shared.advance(num_tokens * len(one.job.members) * num_layers)
            return workers
        model = one.job.model
        token_ids = token_ids_of(one.job.tree, one.job.groups[group])
        table, row_of_token = read_embedding(model.checkpoint, token_ids, model.reader)
        for worker in workers:
            worker.embed(table, row_of_token)
    return workers


def _make_workers(shared: SweepShared, part: SharedByLanes, group: int) -> list[LaneWorker]:
    job, model, workers = part.job, part.job.model, []
    for (decoder, device), lane in zip(job.workers, job.groups[group], strict=True):
        width = model.checkpoint.config.hidden_size
        shape = StoreShape(num_rows=lane.num_tokens, width=width, dtype=model.dtype, device=device)
        worker = LaneWorker(
            decoder=decoder,
            device=device,
            dtype=model.dtype,
            tree=job.tree,
            lane=lane,
            stores={
                name: TimedStore(make_store(job.plan.hidden_store, shape, shared.folder))
                for name in job.members
            },
            norm=shared.norm,
            readouts=part.readouts,
            tap=shared.tap,
        )
        workers.append(worker)
    return workers
