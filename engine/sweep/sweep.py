"""The sweep: every micro-batch through layer 1, then layer 2, and so on, while the next layer is read.

Data flow: SweepJob (tree, scored stream indexes, plan) -> lanes, a group of them at a time, a worker thread a
lane -> readouts [S, D] a member, one row for each scored stream index in ascending order. Members (adapters)
have hidden states of their own and share each layer's base weights.
Knows nothing of questions, prompts or heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from strata.engine.adapters.lora import Adapter
from strata.engine.adapters.lora_linear import set_active, wrap_linears
from strata.engine.model.decoder import Decoder, build_decoder
from strata.engine.model.embedding import read_embedding
from strata.engine.model.layer_loader import make_loader
from strata.engine.plan.sweep_job import SweepJob, plan_lanes
from strata.engine.plan.sweep_plan import readout_dtype
from strata.engine.sweep.coordinator import Coordinator
from strata.engine.sweep.hidden_store import HiddenStore, make_store
from strata.engine.sweep.lane_worker import LaneWorker
from strata.engine.sweep.layer_stream import LayerStream
from strata.engine.sweep.shared_keys import PublicKeys
from strata.engine.tree.intervals import indexes
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.tensor_reader import TensorReader


@dataclass(kw_only=True, eq=False)
class SweepResult:
    """Readouts [S, D] a member (see `readout_dtype`), on the host, and what was measured.

    `group_s` are the seconds of each group; `overflows` lists (layer, micro-batch) computed in float32.
    """

    readouts: dict[str, torch.Tensor]
    group_s: list[float] = field(default_factory=list)
    tokens_computed: int = 0
    weights_wait_s: float = 0.0
    weights_read_s: float = 0.0
    overflows: list[tuple[int, int]] = field(default_factory=list)


FinishGroup = Callable[[int, SweepResult], bool]


@dataclass(kw_only=True, eq=False)
class _Shared:
    """What the workers of a run have in common."""

    job: SweepJob
    stream: LayerStream
    public: PublicKeys
    coordinator: Coordinator
    norm: Mapping[str, torch.Tensor]
    readouts: dict[str, torch.Tensor]
    advance: Callable[[int], None]


def run_sweep(
    job: SweepJob,
    reader: TensorReader,
    folder: Path,
    advance: Callable[[int], None] = lambda tokens: None,
    finish_group: FinishGroup = lambda group, result: True,
) -> SweepResult:
    """Computes the readouts of a job, a group of lanes after another.

    Args:
        job: what to compute, and the plan of how.
        reader: counts the bytes read.
        folder: where a hidden store on disk keeps its temporary files.
        advance: called with the number of tokens after each micro-batch of each layer, for a progress bar.
        finish_group: called after each group with its number and the result so far; False ends the sweep.

    Raises:
        InputError: the checkpoint lacks a weight.
        FloatingPointError: hidden states that are not finite even in float32.
    """
    devices = [torch.device(name) for name in job.plan.devices]
    decoders = [_build_worker_decoder(job, device) for device in devices]
    groups = plan_lanes(job.tree, job.scored, job.plan)
    shared = _share(job, reader, decoders[0], devices, num_sweeps=len(groups), advance=advance)
    result = SweepResult(readouts=shared.readouts)
    shared.coordinator.start(shared.stream.read_all, "layer-reader")
    try:
        for sweep, lanes in enumerate(groups):
            started = perf_counter()
            workers = [
                LaneWorker(
                    decoder=decoder, device=device, dtype=job.plan.torch_dtype, tree=job.tree, lane=lane
                )
                for decoder, device, lane in zip(decoders, devices, lanes, strict=True)
            ]
            _sweep_group(shared, sweep, workers, reader, folder, result)
            result.group_s.append(perf_counter() - started)
            if not finish_group(sweep, result):
                break
    finally:
        shared.coordinator.stop()
    result.weights_wait_s, result.weights_read_s = shared.stream.wait_s, shared.stream.read_s
    return result


def _sweep_group(
    shared: _Shared,
    sweep: int,
    workers: list[LaneWorker],
    reader: TensorReader,
    folder: Path,
    result: SweepResult,
) -> None:
    """All lanes of a group, a thread each; adds what they found to the result."""
    stores = _embed_group(shared.job, workers, reader, folder)
    tasks = [partial(sweep_lane, shared, sweep, *pair) for pair in zip(workers, stores, strict=True)]
    shared.coordinator.run(tasks, f"sweep-{sweep}")
    result.overflows += [overflow for worker in workers for overflow in worker.overflows]
    result.tokens_computed += sum(worker.lane.num_tokens for worker in workers) * len(shared.job.members)
    for store in (store for own in stores for store in own.values()):
        store.close()


def sweep_lane(shared: _Shared, sweep: int, worker: LaneWorker, stores: dict[str, HiddenStore]) -> None:
    """One worker's sweep: all layers over all micro-batches of its lane, for every member."""
    job, lane = shared.job, worker.lane
    with torch.inference_mode():
        for layer in range(job.checkpoint.num_layers):
            worker.assign(layer, shared.stream.take(sweep, layer, worker.device))
            for number, member in enumerate(job.members):
                _activate_adapter(worker, job.adapters, number, layer)
                carried = shared.public.take(member, layer, lane, worker.device)
                for index, batch in enumerate(lane.micro_batches):
                    shared.coordinator.check()
                    key_values = _run_micro_batch(
                        shared, worker, layer, index, member, stores[member], carried
                    )
                    shared.public.publish(member, layer, lane, batch, key_values)
                    carried = worker.keep_carried(index, key_values)
                    shared.advance(batch.num_rows)
            worker.release(layer)
            shared.stream.give_back(sweep, layer, worker.device)


def _share(
    job: SweepJob,
    reader: TensorReader,
    decoder: Decoder,
    devices: list[torch.device],
    *,
    num_sweeps: int,
    advance: Callable[[int], None],
) -> _Shared:
    coordinator = Coordinator()
    num_streamed = job.checkpoint.num_layers - len(job.plan.resident_layers)
    stream = LayerStream(
        loader=make_loader(job.checkpoint, decoder, job.plan.torch_dtype, reader, job.adapters),
        num_layers=job.checkpoint.num_layers,
        sweeps=[range(job.checkpoint.num_layers)] * num_sweeps,
        resident=frozenset(job.plan.resident_layers),
        devices=devices,
        num_slots=min(job.plan.num_slots, num_streamed * num_sweeps),
        coordinator=coordinator,
    )
    width = job.checkpoint.config.hidden_size
    return _Shared(
        job=job,
        stream=stream,
        public=PublicKeys(coordinator),
        coordinator=coordinator,
        norm=_read_norm(job.checkpoint, reader),
        readouts={
            name: torch.empty(len(job.scored), width, dtype=readout_dtype(job.plan.torch_dtype))
            for name in job.members
        },
        advance=advance,
    )


def _build_worker_decoder(job: SweepJob, device: torch.device) -> Decoder:
    decoder = build_decoder(job.checkpoint.config, job.plan.torch_dtype)
    if job.plan.linear == "int8":
        decoder.quantize_linears()
    decoder.prepare_rope(int(job.tree.position_ids.max()), device, job.plan.torch_dtype)
    if len(job.adapters) > 1:
        for layer in decoder.layers:
            wrap_linears(layer, {path for adapter in job.adapters for path in adapter.module_paths})
    return decoder


def _read_norm(checkpoint: Checkpoint, reader: TensorReader) -> dict[str, torch.Tensor]:
    names = [name for name in checkpoint.weights if name.startswith("norm.")]
    return {name.removeprefix("norm."): reader.read(checkpoint.require_plain(name)) for name in names}


def _embed_group(
    job: SweepJob, workers: list[LaneWorker], reader: TensorReader, folder: Path
) -> list[dict[str, HiddenStore]]:
    """A filled hidden store a member for every worker."""
    plan, width = job.plan, job.checkpoint.config.hidden_size
    table, row_of_token = read_embedding(job.checkpoint, np.unique(job.tree.token_ids), reader)
    stores = []
    for worker in workers:
        size = (worker.lane.num_tokens, width, plan.torch_dtype, worker.device)
        own = {member: make_store(plan.hidden_store, *size, folder) for member in job.members}
        with torch.inference_mode():
            for store in own.values():
                worker.embed(table, row_of_token, store)
        stores.append(own)
    return stores


def _activate_adapter(worker: LaneWorker, adapters: tuple[Adapter, ...], number: int, layer: int) -> None:
    if len(adapters) > 1:
        loras = adapters[number].layers[layer]
        module = worker.decoder.layers[layer]
        set_active(module, {path: lora.to(worker.device, worker.dtype) for path, lora in loras.items()})


def _run_micro_batch(
    shared: _Shared,
    worker: LaneWorker,
    layer: int,
    index: int,
    member: str,
    store: HiddenStore,
    carried: torch.Tensor | None,
) -> torch.Tensor:
    """Runs a micro-batch through a layer; the last one leaves readouts. Returns the key space."""
    if layer < shared.job.checkpoint.num_layers - 1:
        return worker.run_layer(layer, index, member, store, carried)
    readouts, key_values = worker.run_last_layer(layer, index, member, store, carried, shared.norm)
    streams = indexes(worker.lane.micro_batches[index].rows)[worker.lane.micro_batches[index].scored_rows]
    rows = torch.from_numpy(np.searchsorted(shared.job.scored, streams))
    shared.readouts[member][rows] = readouts.to(shared.readouts[member].dtype).cpu()
    return key_values
