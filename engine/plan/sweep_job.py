"""Plans the sweep of trees, down to the lanes: what `run_sweep` then does, nothing built twice.

Flow: open model + trees + machine -> ModelCosts, Workload -> SweepPlan -> the lanes it means -> the bytes
that will be read, exactly. Trees of one base, each with members of its own, are planned as one job: a layer
is read once for all of them. Reads no weights. Knows no heads: what they read comes as a function of targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from strata.engine.machine.machine import Machine
from strata.engine.model.decoder import Decoder
from strata.engine.model.embedding import embedding_bytes
from strata.engine.model.open_model import OpenModel
from strata.engine.plan.costs import ModelCosts, model_costs
from strata.engine.plan.groups import Groups, count_lasting, largest_share, public_layer_bytes, settle_groups
from strata.engine.plan.overrides import GroupGoal, PlanOverrides
from strata.engine.plan.planner import layer_bytes, plan_sweep, predict_plan
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.plan.workload import (
    SideBytes,
    TokenStream,
    Workload,
    join_streams,
    measure_workload,
)
from strata.engine.tree.lanes import token_ids_of
from strata.engine.tree.prefix_tree import PrefixTree, count_visible
from strata.engine.tree.targets import ScoredTree, TargetTable
from strata.engine.types import InputError

LEAST_LANE_TOKENS = 512
"""On a CPU a job is split into lanes that have at least so many tokens each."""
SLOWER_IN_LANES = 1.1
"""Lanes may be predicted to take so many times as long: predictions know nothing of a busy machine, on which
threads of one product wait for each other."""

HeadBytes = Callable[[TargetTable], int]
"""Bytes that the head of all members reads of the checkpoint for some targets."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepJob:
    """What a sweep computes: readouts of a tree's scored tokens, for every member of an open model.

    Attributes:
        model: the modules, and the loader of their weights.
        scored_tree: the tokens, and which of them are read out.
        plan: how.
        groups: the lanes of every group, one a worker.
    """

    model: OpenModel
    scored_tree: ScoredTree
    plan: SweepPlan
    groups: Groups

    @property
    def tree(self) -> PrefixTree:
        """All tokens."""
        return self.scored_tree.tree

    @property
    def members(self) -> tuple[str, ...]:
        """Names of what is swept side by side."""
        return tuple(member.name for member in self.model.members)

    @property
    def workers(self) -> tuple[tuple[Decoder, torch.device], ...]:
        """A decoder and its device for each lane of a group; the model may have more."""
        found = zip(self.model.decoders, self.model.devices, strict=True)
        return tuple(found)[: len(self.plan.devices)]

    @property
    def worker_names(self) -> tuple[str, ...]:
        """The devices of the workers, with numbers where lanes share one."""
        devices = self.plan.devices
        return tuple(
            f"{name} lane {devices[: place + 1].count(name)}" if devices.count(name) > 1 else name
            for place, name in enumerate(devices)
        )

    @property
    def num_micro_batches(self) -> int:
        """Of all lanes."""
        return sum(len(lane.micro_batches) for lanes in self.groups for lane in lanes)

    @property
    def completed(self) -> tuple[tuple[int, ...], ...]:
        """For each group the indexes of the prompts whose last readout it computes."""
        return self.scored_tree.completed_by(self.groups)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanRequest:
    """What a sweep is planned with: the machine, what the user fixes, and how long groups may be."""

    machine: Machine
    overrides: PlanOverrides = field(default_factory=PlanOverrides)
    group_goal: GroupGoal = field(default_factory=GroupGoal)


@dataclass(frozen=True, kw_only=True, eq=False)
class Asking:
    """A tree that some members of a model compute.

    Attributes:
        model: of one base with those of other askings; its members are who computes the tree.
        scored_tree: the tokens.
        head_bytes: what the head will read.
    """

    model: OpenModel
    scored_tree: ScoredTree
    head_bytes: HeadBytes


def plan_sweep_job(
    model: OpenModel, scored_tree: ScoredTree, request: PlanRequest, head_bytes: HeadBytes
) -> SweepJob:
    """Plans the sweep of one tree; see `plan_sweep_jobs`."""
    asking = Asking(model=model, scored_tree=scored_tree, head_bytes=head_bytes)
    (job,) = plan_sweep_jobs([asking], request)
    return job


def plan_sweep_jobs(askings: Sequence[Asking], request: PlanRequest) -> tuple[SweepJob, ...]:
    """Plans the sweep of trees. Layers that an earlier sweep left in memory stay if that is no slower.

    Args:
        askings: the trees, of one base.
        request: on which machine, and what is fixed.

    Returns:
        A job for each, all with one plan.

    Raises:
        InputError: too small a budget.
    """
    fresh, resident = _plan(askings, request, held=frozenset()), askings[0].model.resident
    if not resident:
        return fresh
    warm = _plan_warm(askings, request)
    if warm is not None and warm[0].plan.predicted_s <= fresh[0].plan.predicted_s:
        return warm
    resident.clear()
    return fresh


def _plan_warm(askings: Sequence[Asking], request: PlanRequest) -> tuple[SweepJob, ...] | None:
    """The jobs with the layers that are in memory staying there; None when that is not possible."""
    resident = askings[0].model.resident
    if request.overrides.resident_layers not in (None, len(resident)):
        return None
    kept = replace(request, overrides=replace(request.overrides, resident_layers=len(resident)))
    try:
        jobs = _plan(askings, kept, held=frozenset(resident))
    except InputError:
        return None
    return jobs if set(resident) <= set(jobs[0].plan.resident_layers) else None


def _plan(askings: Sequence[Asking], request: PlanRequest, held: frozenset[int]) -> tuple[SweepJob, ...]:
    """Plans a sweep that finds some layers in memory already, in two lanes of a CPU where that is faster.

    A prediction takes lanes to be of one size: a long prefix that all options share lies in one of them.
    """
    machine = request.machine
    alone = _plan_lanes(askings, request, held)
    num_tokens = sum(job.tree.num_tokens for job in alone)
    if machine.most_lanes == 1 or num_tokens < machine.most_lanes * LEAST_LANE_TOKENS:
        return alone
    try:
        split = _plan_lanes(askings, replace(request, machine=machine.split(machine.most_lanes)), held)
    except InputError:
        return alone  # only one micro-batch at a time fits
    slowest = max(largest_share(job.groups) for job in split)
    longest_s = SLOWER_IN_LANES * alone[0].plan.predicted_s
    return split if split[0].plan.predicted_s * slowest <= longest_s else alone


def _plan_lanes(
    askings: Sequence[Asking], request: PlanRequest, held: frozenset[int]
) -> tuple[SweepJob, ...]:
    """Plans a sweep with a lane for each of the machine's devices."""
    request = _with_whole_trees(request, [asking.scored_tree.tree for asking in askings])
    costs = _costs_of(askings[0].model, held)
    work = _measure(askings, costs)
    plan = plan_sweep(costs, work, request.machine, request.overrides)
    wanted = request.group_goal.num_groups(plan.predicted_s)
    if request.overrides.num_groups is None and wanted > plan.num_groups:
        overrides = replace(request.overrides, num_groups=wanted)
        plan = plan_sweep(costs, work, request.machine, overrides)
    plan, groups = settle_groups([asking.scored_tree for asking in askings], plan)
    plan = predict_plan(plan, costs, work, request.machine.rates)
    for asking, lanes in zip(askings, groups, strict=True):
        public = [public_layer_bytes(costs, lanes)] * (costs.num_layers * len(asking.model.members))
        plan = count_lasting(plan, public, asking.model.adapter_bytes)
    jobs = [
        SweepJob(model=asking.model, scored_tree=asking.scored_tree, plan=plan, groups=lanes)
        for asking, lanes in zip(askings, groups, strict=True)
    ]
    beside = [
        _bytes_beside_layers(job, work, asking.head_bytes) for job, asking in zip(jobs, askings, strict=True)
    ]
    exact = replace(plan, bytes_read=layer_bytes(plan, costs) + work.norm_bytes + sum(beside))
    return tuple(replace(job, plan=exact) for job in jobs)


def _with_whole_trees(request: PlanRequest, trees: Sequence[PrefixTree]) -> PlanRequest:
    """The request with micro-batches as large as the largest tree of forests."""
    sizes = [
        np.diff(tree.tree_starts, append=tree.num_tokens).max()
        for tree in trees
        if tree.tree_starts is not None
    ]
    if not sizes:
        return request
    return replace(request, overrides=replace(request.overrides, micro_batch_tokens=int(max(sizes))))


def _costs_of(model: OpenModel, held: frozenset[int]) -> ModelCosts:
    """The model's costs; layers that are in memory already are not read and not decoded."""
    costs = model_costs(model.checkpoint.config, model.loader.routes, model.dtype)
    return replace(
        costs,
        stored_bytes=tuple(0 if n in held else size for n, size in enumerate(costs.stored_bytes)),
        decode_weights=tuple({} if n in held else steps for n, steps in enumerate(costs.decode_weights)),
    )


def _measure(askings: Sequence[Asking], costs: ModelCosts) -> Workload:
    model = askings[0].model
    norms = [source for name, source in model.checkpoint.weights.items() if name.startswith("norm.")]
    side_bytes = SideBytes(
        norm=sum(source.num_bytes for source in norms) if model.normalizes else 0,
        head=sum(asking.head_bytes(asking.scored_tree.targets) for asking in askings),
        embedding_row=embedding_bytes(model.checkpoint, 1),
    )
    if len(askings) == 1:
        stream = _stream_of(askings[0].scored_tree)
        return measure_workload(costs, stream, side_bytes, num_members=len(model.members))
    streams = [_stream_of(asking.scored_tree) for asking in askings for _ in asking.model.members]
    return measure_workload(costs, join_streams(streams), side_bytes, num_members=1)


def _stream_of(scored_tree: ScoredTree) -> TokenStream:
    tree = scored_tree.tree
    return TokenStream(
        token_ids=tree.token_ids,
        position_ids=tree.position_ids,
        scored=scored_tree.scored,
        visible=partial(count_visible, tree),
    )


def _bytes_beside_layers(job: SweepJob, work: Workload, head_bytes: HeadBytes) -> int:
    """Bytes that a job will read beside layers and final norm: embedding rows and heads of every group."""
    num_rows = sum(len(token_ids_of(job.tree, lanes)) for lanes in job.groups)
    heads = sum(head_bytes(job.scored_tree.targets_of(indexes)) for indexes in job.completed if indexes)
    return num_rows * work.embedding_row_bytes + heads
