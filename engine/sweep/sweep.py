"""The sweep: every micro-batch through layer 1, then layer 2, and so on, while the next layer is read.

Data flow: SweepJob (open model, tree, plan, lanes) -> a group of lanes at a time, a worker thread a device ->
readouts [S, D] a member, one row for each scored stream index in ascending order. Members (adapters) have
hidden states of their own and share each layer's base weights. So do several jobs of one base, which differ
in their prompts: a worker thread takes each layer through the lanes of all of them.
Where memory runs out (host or device), the micro-batch is cut in two and computed again, down to
`LEAST_TOKENS`; results stay the same, since the stream may be cut anywhere. Other lanes do not notice.
Knows nothing of questions, prompts or heads.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter

import torch

from strata.engine.memory_errors import MemoryRanOutError, is_out_of_memory
from strata.engine.plan.sweep_job import SweepJob
from strata.engine.results.timeline import Track
from strata.engine.sweep.kept_states import Keeper
from strata.engine.sweep.lane_worker import LaneWorker
from strata.engine.sweep.layer_clock import LayerClock
from strata.engine.sweep.memory_advice import explain_halvings
from strata.engine.sweep.readouts import Tap
from strata.engine.sweep.sweep_parts import Advance, SharedByLanes, SweepShared, fill_group, share_sweep


@dataclass(frozen=True, kw_only=True, eq=False)
class SweptGroup:
    """What is known after a group.

    Attributes:
        index: which group.
        readouts: [S, D] a member (see `readout_dtype`), on the host; rows of later groups are not filled yet.
        seconds: of the group.
        tokens_computed: in the group, by all members; of a group gone on with, its share of the layers.
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


def run_sweep(
    job: SweepJob,
    folder: Path,
    advance: Advance = lambda tokens: None,
    tap: Tap | None = None,
    track: Track | None = None,
    keeper: Keeper | None = None,
) -> Generator[SweptGroup, None, None]:
    """Computes the readouts of a job, a group of lanes after another; closing the iterator ends the sweep.

    Args:
        job: what to compute, and how.
        folder: where a hidden store on disk keeps its temporary files.
        advance: for a progress bar.
        tap: told of the scored rows after every layer, from the threads that compute.
        track: where is noted what is done when.
        keeper: keeps the first group's hidden states, and has those to go on from.

    Yields:
        Each group as it ends.

    Raises:
        InputError: the checkpoint lacks a weight.
        FloatingPointError: hidden states that are not finite even in float32.
        MemoryRanOutError: not even the smallest micro-batches fit, or something else does not.
    """
    # Closed by name: a Python that keeps the frame of a closed generator (3.12.3) would let its threads wait.
    with closing(run_sweeps([job], folder, advance, tap, track, keeper)) as groups:
        for (group,) in groups:
            yield group


def run_sweeps(
    jobs: Sequence[SweepJob],
    folder: Path,
    advance: Advance = lambda tokens: None,
    tap: Tap | None = None,
    track: Track | None = None,
    keeper: Keeper | None = None,
) -> Generator[tuple[SweptGroup, ...], None, None]:
    """Computes the readouts of jobs that share a base and a plan; arguments and errors are `run_sweep`'s.

    Args:
        jobs: of equally many groups; their models differ in their members only (see `plan_sweep_jobs`).
        folder: see `run_sweep`.
        advance: see `run_sweep`.
        tap: see `run_sweep`.
        track: see `run_sweep`.
        keeper: see `run_sweep`.

    Yields:
        Each group as it ends, once a job. The seconds are those of all; what was waited for and read is told
        by the first job's alone.
    """
    try:
        yield from _sweep_groups(share_sweep(jobs, folder, advance, tap, track, keeper))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryRanOutError(explain_halvings(jobs[0], error)) from error


def _sweep_groups(shared: SweepShared) -> Iterator[tuple[SweptGroup, ...]]:
    base, jobs = shared.base, [part.job for part in shared.parts]
    longest = max(int(job.tree.position_ids.max()) for job in jobs)
    for decoder, device in jobs[0].workers:
        decoder.prepare_rope(longest, device, base.dtype)
    # Or sums of a product that cuBLAS splits would be added up in float16, and scores depend on the split.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    try:
        shared.coordinator.start(shared.stream.read_all, "layer-reader")
        for group in range(len(jobs[0].groups)):
            yield _sweep_group(shared, group)
            if shared.keeper is not None:
                shared.keeper.end()
    finally:
        shared.coordinator.stop()
        shared.stream.settle()


def _sweep_group(shared: SweepShared, group: int) -> tuple[SweptGroup, ...]:
    """All lanes of a group, a thread a device."""
    started, stream = perf_counter(), shared.stream
    wait_s, read_s = stream.wait_s, stream.read_s
    workers = [fill_group(shared, index, group) for index in range(len(shared.parts))]
    on_device = zip(*workers, strict=True)
    try:
        shared.coordinator.run(
            [partial(sweep_lanes, shared, group, index, lanes) for index, lanes in enumerate(on_device)],
            f"sweep-{group}",
        )
    finally:
        for worker in chain.from_iterable(workers):
            worker.close()
    seconds = perf_counter() - started
    num_layers = shared.base.checkpoint.num_layers
    swept = (num_layers - shared.first_layer(group)) / num_layers
    return tuple(
        SweptGroup(
            index=group,
            readouts=part.readouts.rows,
            seconds=seconds,
            tokens_computed=round(
                swept * sum(worker.lane.num_tokens for worker in lanes) * len(part.job.members)
            ),
            weights_wait_s=stream.wait_s - wait_s if part is shared.parts[0] else 0.0,
            weights_read_s=stream.read_s - read_s if part is shared.parts[0] else 0.0,
            overflows=tuple(overflow for worker in lanes for overflow in worker.overflows),
            halvings=tuple(halving for worker in lanes for halving in worker.halvings),
        )
        for part, lanes in zip(shared.parts, workers, strict=True)
    )


def sweep_lanes(shared: SweepShared, group: int, lane: int, workers: Sequence[LaneWorker]) -> None:
    """One device's sweep: all layers over the lanes of all jobs, each layer taken and given back once."""
    device, public = workers[0].device, [part.public for part in shared.parts]
    place = shared.parts[0].job.worker_names[lane]
    with torch.inference_mode():
        for layer in range(shared.first_layer(group), shared.base.checkpoint.num_layers):
            clock = LayerClock(workers, shared.track, place)
            weights = shared.stream.take(group, layer, device)
            clock.has_weights()
            for part, worker in zip(shared.parts, workers, strict=True):
                worker.assign(layer, weights)
                sweep_layer(shared, part, worker, layer)
                worker.release()
            del weights  # nothing may refer to a slot that is given back
            shared.stream.give_back(group, layer, device)
            clock.note(group, layer)
            if shared.keeper is not None and group == 0:
                shared.keeper.end_layer(layer, lane, workers, public)


def sweep_layer(shared: SweepShared, part: SharedByLanes, worker: LaneWorker, layer: int) -> None:
    """One layer over all micro-batches of a lane, for every member."""
    lane, device = worker.lane, worker.device
    for member in part.job.model.members:
        member.activate(worker.decoder, layer, device, worker.dtype)
        carried = part.public.take(member.name, layer, lane, device)
        index = 0
        while index < len(worker.tiled):
            shared.coordinator.check()
            try:
                key_values, kept = worker.run(index, member.name, carried)
            except (MemoryError, RuntimeError) as error:
                worker.halve(index, error)
                continue
            batch, index, carried = worker.tiled[index].batch, index + 1, kept
            part.public.publish(member.name, layer, lane, batch, key_values)
            shared.advance(batch.num_rows)
