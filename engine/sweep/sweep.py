"""The sweep: every micro-batch through layer 1, then layer 2, and so on, while the next layer is read.

Data flow: SweepJob (open model, tree, plan, lanes) -> a group of lanes at a time, a worker thread a lane ->
readouts [S, D] a member, one row for each scored stream index in ascending order. Members (adapters) have
hidden states of their own and share each layer's base weights.
Where memory runs out (host or device), the micro-batch is cut in two and computed again, down to
`LEAST_TOKENS`; results stay the same, since the stream may be cut anywhere. Other lanes do not notice.
Knows nothing of questions, prompts or heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from strata.engine.memory_errors import MemoryRanOutError, first_sentence, is_out_of_memory
from strata.engine.model.embedding import read_embedding
from strata.engine.model.open_model import OpenModel
from strata.engine.plan.sweep_job import SweepJob
from strata.engine.plan.sweep_plan import readout_dtype
from strata.engine.sweep.coordinator import Coordinator
from strata.engine.sweep.hidden_store import StoreShape, make_store
from strata.engine.sweep.lane_worker import LEAST_TOKENS, LaneWorker, Readouts, Tap
from strata.engine.sweep.layer_stream import LayerStream, ReadingOrder
from strata.engine.sweep.shared_keys import PublicKeys
from strata.engine.tree.lanes import token_ids_of

Advance = Callable[[int], None]
"""Told of the number of tokens after each micro-batch of each layer, for a progress bar."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SweptGroup:
    """What is known after a group.

    Attributes:
        index: which group.
        readouts: [S, D] a member (see `readout_dtype`), on the host; rows of later groups are not filled yet.
        seconds: of the group.
        tokens_computed: in the group, by all members.
        weights_wait_s: in which workers waited for weights.
        weights_read_s: of reading and decoding.
        overflows: (layer, first row) of micro-batches that were computed in float32.
        halvings: (layer, tokens) of micro-batches for which memory ran out: tokens after they were cut.
    """

    index: int
    readouts: Mapping[str, torch.Tensor]
    seconds: float
    tokens_computed: int
    weights_wait_s: float
    weights_read_s: float
    overflows: tuple[tuple[int, int], ...]
    halvings: tuple[tuple[int, int], ...]


@dataclass(kw_only=True, eq=False)
class _Shared:
    """What the workers of a run have in common."""

    job: SweepJob
    folder: Path
    stream: LayerStream
    public: PublicKeys
    coordinator: Coordinator
    norm: Mapping[str, torch.Tensor] | None
    readouts: Readouts
    advance: Advance
    tap: Tap | None


def run_sweep(
    job: SweepJob, folder: Path, advance: Advance = lambda tokens: None, tap: Tap | None = None
) -> Iterator[SweptGroup]:
    """Computes the readouts of a job, a group of lanes after another; closing the iterator ends the sweep.

    Args:
        job: what to compute, and how.
        folder: where a hidden store on disk keeps its temporary files.
        advance: for a progress bar.
        tap: told of the scored rows after every layer, from the threads that compute.

    Yields:
        Each group as it ends.

    Raises:
        InputError: the checkpoint lacks a weight.
        FloatingPointError: hidden states that are not finite even in float32.
        MemoryRanOutError: not even the smallest micro-batches fit, or something else does not.
    """
    try:
        yield from _sweep_groups(job, folder, advance, tap)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryRanOutError(_explain(job, error)) from error


def _sweep_groups(job: SweepJob, folder: Path, advance: Advance, tap: Tap | None) -> Iterator[SweptGroup]:
    for device, decoder in zip(job.model.devices, job.model.decoders, strict=True):
        decoder.prepare_rope(int(job.tree.position_ids.max()), device, job.model.dtype)
    shared = _share(job, folder, advance, tap)
    try:
        shared.coordinator.start(shared.stream.read_all, "layer-reader")
        for group in range(len(job.groups)):
            yield _sweep_group(shared, group)
    finally:
        shared.coordinator.stop()
        shared.stream.settle()


def _explain(job: SweepJob, error: BaseException) -> str:
    plan = job.plan
    is_cut = job.tree.tree_starts is None
    settings = {
        "micro-batch-tokens": is_cut and plan.micro_batch_tokens > LEAST_TOKENS and LEAST_TOKENS,
        "resident-layers": bool(plan.resident_layers) and "0",
        "hidden-store": plan.hidden_store != "disk" and "disk",
        "num-groups": 2 * plan.num_groups,
    }
    smallest = " ".join(f"--{flag} {setting}" for flag, setting in settings.items() if setting)
    tried = f"micro-batches halved down to {LEAST_TOKENS} tokens" if is_cut else "questions computed whole"
    return (
        f"memory ran out ({first_sentence(error)}), with {tried}; "
        f"expected more free memory, or the smallest run there is: {smallest}"
    )


def _sweep_group(shared: _Shared, group: int) -> SweptGroup:
    """All lanes of a group, a thread each."""
    started, stream = perf_counter(), shared.stream
    wait_s, read_s = stream.wait_s, stream.read_s
    workers = _embed_group(shared, group)
    tasks = [partial(sweep_lane, shared, group, worker) for worker in workers]
    shared.coordinator.run(tasks, f"sweep-{group}")
    for worker in workers:
        worker.close()
    return SweptGroup(
        index=group,
        readouts=shared.readouts.rows,
        seconds=perf_counter() - started,
        tokens_computed=sum(worker.lane.num_tokens for worker in workers) * len(shared.job.members),
        weights_wait_s=stream.wait_s - wait_s,
        weights_read_s=stream.read_s - read_s,
        overflows=tuple(overflow for worker in workers for overflow in worker.overflows),
        halvings=tuple(halving for worker in workers for halving in worker.halvings),
    )


def sweep_lane(shared: _Shared, group: int, worker: LaneWorker) -> None:
    """One worker's sweep: all layers over all micro-batches of its lane, for every member."""
    model, lane, device = shared.job.model, worker.lane, worker.device
    with torch.inference_mode():
        for layer in range(model.checkpoint.num_layers):
            worker.assign(layer, shared.stream.take(group, layer, device))
            for member in model.members:
                member.activate(worker.decoder, layer, device, worker.dtype)
                carried = shared.public.take(member.name, layer, lane, device)
                index = 0
                while index < len(worker.tiled):
                    shared.coordinator.check()
                    try:
                        key_values, kept = worker.run(index, member.name, carried)
                    except (MemoryError, RuntimeError) as error:
                        worker.halve(index, error)
                        continue
                    batch, index, carried = worker.tiled[index].batch, index + 1, kept
                    shared.public.publish(member.name, layer, lane, batch, key_values)
                    shared.advance(batch.num_rows)
            worker.release()
            shared.stream.give_back(group, layer, device)


def _share(job: SweepJob, folder: Path, advance: Advance, tap: Tap | None) -> _Shared:
    model, coordinator = job.model, Coordinator()
    # A job that was planned before another one ran has no memory for what that one left.
    for layer in set(model.resident) - set(job.plan.resident_layers):
        del model.resident[layer]
    num_layers, num_groups = model.checkpoint.num_layers, len(job.groups)
    num_streamed = num_layers - len(job.plan.resident_layers)
    order = ReadingOrder(
        sweeps=[range(num_layers)] * num_groups,
        num_slots=min(job.plan.num_slots, num_streamed * num_groups),
        resident=frozenset(job.plan.resident_layers),
    )
    scored, dtype = job.scored_tree.scored, readout_dtype(model.dtype)
    size = (len(scored), model.checkpoint.config.hidden_size)
    return _Shared(
        job=job,
        folder=folder,
        stream=LayerStream(model.loader, order, model.devices, coordinator, model.resident),
        public=PublicKeys(coordinator),
        coordinator=coordinator,
        norm=_read_norm(model) if model.normalizes else None,
        readouts=Readouts(scored=scored, rows={name: torch.empty(size, dtype=dtype) for name in job.members}),
        advance=advance,
        tap=tap,
    )


def _read_norm(model: OpenModel) -> dict[str, torch.Tensor]:
    checkpoint = model.checkpoint
    names = [name for name in checkpoint.weights if name.startswith("norm.")]
    return {name.removeprefix("norm."): checkpoint.require_rows(name).read(model.reader) for name in names}


def _embed_group(shared: _Shared, group: int) -> list[LaneWorker]:
    """The workers of a group, their hidden stores filled with embeddings."""
    job, model = shared.job, shared.job.model
    token_ids = token_ids_of(job.tree, job.groups[group])
    table, row_of_token = read_embedding(model.checkpoint, token_ids, model.reader)
    workers = []
    for decoder, device, lane in zip(model.decoders, model.devices, job.groups[group], strict=True):
        width = model.checkpoint.config.hidden_size
        shape = StoreShape(num_rows=lane.num_tokens, width=width, dtype=model.dtype, device=device)
        worker = LaneWorker(
            decoder=decoder,
            device=device,
            dtype=model.dtype,
            tree=job.tree,
            lane=lane,
            stores={name: make_store(job.plan.hidden_store, shape, shared.folder) for name in job.members},
            norm=shared.norm,
            readouts=shared.readouts,
            tap=shared.tap,
        )
        with torch.inference_mode():
            worker.embed(table, row_of_token)
        workers.append(worker)
    return workers
