"""Plans the sweep of a tree, down to the lanes: what `run_sweep` then does, nothing built twice.

Flow: open model + tree + machine -> ModelCosts, Workload -> SweepPlan -> the lanes it means -> the bytes that
will be read, exactly. Reads no weights. Knows no heads: what they read comes as a function of targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from strata.engine.machine.machine import Machine
from strata.engine.model.embedding import embedding_bytes
from strata.engine.model.open_model import OpenModel
from strata.engine.plan.costs import ModelCosts, model_costs
from strata.engine.plan.overrides import GroupGoal, PlanOverrides
from strata.engine.plan.planner import layer_bytes, plan_sweep, predict_plan
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.plan.workload import SideBytes, TokenStream, Workload, measure_workload
from strata.engine.tree.intervals import count
from strata.engine.tree.lanes import EMPTY_LANE, Lane, split_lanes, token_ids_of
from strata.engine.tree.prefix_tree import PrefixTree
from strata.engine.tree.targets import ScoredTree, TargetTable
from strata.engine.types import InputError

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
    groups: tuple[tuple[Lane, ...], ...]

    @property
    def tree(self) -> PrefixTree:
        """All tokens."""
        return self.scored_tree.tree

    @property
    def members(self) -> tuple[str, ...]:
        """Names of what is swept side by side."""
        return tuple(member.name for member in self.model.members)

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


def plan_sweep_job(
    model: OpenModel, scored_tree: ScoredTree, request: PlanRequest, head_bytes: HeadBytes
) -> SweepJob:
    """Plans the sweep of a tree. Layers that an earlier sweep left in memory stay if that is no slower.

    Args:
        model: what sweeps.
        scored_tree: the tokens.
        request: on which machine, and what is fixed.
        head_bytes: what the head will read.

    Raises:
        InputError: too small a budget.
    """
    fresh = _plan_sweep_job(model, scored_tree, request, head_bytes, held=frozenset())
    if not model.resident:
        return fresh
    warm = _plan_warm(model, scored_tree, request, head_bytes)
    if warm is not None and warm.plan.predicted_s <= fresh.plan.predicted_s:
        return warm
    model.resident.clear()
    return fresh


def _plan_warm(
    model: OpenModel, scored_tree: ScoredTree, request: PlanRequest, head_bytes: HeadBytes
) -> SweepJob | None:
    """The job with the layers that are in memory staying there; None when that is not possible."""
    num_held = len(model.resident)
    if request.overrides.resident_layers not in (None, num_held):
        return None
    kept = replace(request, overrides=replace(request.overrides, resident_layers=num_held))
    try:
        job = _plan_sweep_job(model, scored_tree, kept, head_bytes, held=frozenset(model.resident))
    except InputError:
        return None
    return job if set(model.resident) <= set(job.plan.resident_layers) else None


def _plan_sweep_job(
    model: OpenModel,
    scored_tree: ScoredTree,
    request: PlanRequest,
    head_bytes: HeadBytes,
    held: frozenset[int],
) -> SweepJob:
    """Plans a sweep that finds some layers in memory already."""
    request = _with_whole_trees(request, scored_tree.tree)
    costs = _costs_of(model, held)
    work = _measure(model, costs, scored_tree, head_bytes(scored_tree.targets))
    plan = plan_sweep(costs, work, request.machine, request.overrides)
    wanted = request.group_goal.num_groups(plan.predicted_s)
    if request.overrides.num_groups is None and wanted > plan.num_groups:
        overrides = replace(request.overrides, num_groups=wanted)
        plan = plan_sweep(costs, work, request.machine, overrides)
    plan, groups = settle_groups(scored_tree, plan)
    plan = predict_plan(plan, costs, work, request.machine.rates)
    plan = count_lasting(plan, public_key_bytes(costs, groups) * len(model.members) + model.adapter_bytes)
    job = SweepJob(model=model, scored_tree=scored_tree, plan=plan, groups=groups)
    exact = _exact_bytes(job, costs, work, head_bytes)
    return replace(job, plan=replace(plan, bytes_read=exact))


def _with_whole_trees(request: PlanRequest, tree: PrefixTree) -> PlanRequest:
    """The request with micro-batches as large as the largest tree of a forest."""
    if tree.tree_starts is None:
        return request
    largest = int(np.diff(tree.tree_starts, append=tree.num_tokens).max())
    return replace(request, overrides=replace(request.overrides, micro_batch_tokens=largest))


def _costs_of(model: OpenModel, held: frozenset[int]) -> ModelCosts:
    """The model's costs; layers that are in memory already are not read and not decoded."""
    costs = model_costs(model.checkpoint.config, model.loader.routes, model.dtype)
    return replace(
        costs,
        stored_bytes=tuple(0 if n in held else size for n, size in enumerate(costs.stored_bytes)),
        decode_weights=tuple({} if n in held else steps for n, steps in enumerate(costs.decode_weights)),
    )


def _measure(model: OpenModel, costs: ModelCosts, scored_tree: ScoredTree, head_bytes: int) -> Workload:
    norms = [source for name, source in model.checkpoint.weights.items() if name.startswith("norm.")]
    side_bytes = SideBytes(
        norm=sum(source.num_bytes for source in norms) if model.normalizes else 0,
        head=head_bytes,
        embedding_row=embedding_bytes(model.checkpoint, 1),
    )
    tree = scored_tree.tree
    stream = TokenStream(token_ids=tree.token_ids, position_ids=tree.position_ids, scored=scored_tree.scored)
    return measure_workload(costs, stream, side_bytes, num_members=len(model.members))


def plan_lanes(scored_tree: ScoredTree, plan: SweepPlan) -> tuple[tuple[Lane, ...], ...]:
    """The lanes of every group, one a device; a small job's last lanes may be empty."""
    num_devices = len(plan.devices)
    num_lanes = plan.num_groups * num_devices
    lanes = split_lanes(scored_tree.tree, scored_tree.scored, num_lanes, plan.micro_batch_tokens)
    missing = -len(lanes) % num_devices
    lanes += (EMPTY_LANE,) * missing
    return tuple(lanes[first : first + num_devices] for first in range(0, len(lanes), num_devices))


def settle_groups(scored_tree: ScoredTree, plan: SweepPlan) -> tuple[SweepPlan, tuple[tuple[Lane, ...], ...]]:
    """The plan with the number of groups that its lanes really make: a small tree has few runs."""
    groups = plan_lanes(scored_tree, plan)
    while len(groups) != plan.num_groups:
        plan = replace(plan, num_groups=len(groups))
        groups = plan_lanes(scored_tree, plan)
    return plan, groups


def public_key_bytes(costs: ModelCosts, groups: Sequence[tuple[Lane, ...]]) -> int:
    """Of one member's keys and values of public tokens, in all layers."""
    num_public = sum(count(lane.public) for lanes in groups for lane in lanes if lane.publishes)
    return num_public * costs.num_layers * costs.key_value_bytes_per_token


def count_lasting(plan: SweepPlan, num_bytes: int) -> SweepPlan:
    """The plan with the memory of what stays for the whole run beside layers."""
    return replace(
        plan,
        memory_bytes=plan.memory_bytes + num_bytes,
        host_bytes=plan.host_bytes + (num_bytes if plan.on_cpu else 0),
    )


def _exact_bytes(job: SweepJob, costs: ModelCosts, work: Workload, head_bytes: HeadBytes) -> int:
    """Bytes that the run will read: layers, embedding rows a group, final norm, heads a group."""
    num_rows = sum(len(token_ids_of(job.tree, lanes)) for lanes in job.groups)
    heads = sum(head_bytes(job.scored_tree.targets_of(indexes)) for indexes in job.completed if indexes)
    rows = num_rows * work.embedding_row_bytes
    return layer_bytes(job.plan, costs) + rows + work.norm_bytes + heads
