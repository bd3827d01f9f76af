"""Plans the sweep of a job's tree: costs of the checkpoint, budgets and rates of the machine, exact bytes.

Flow: checkpoint headers + tree + targets -> ModelCosts, Workload -> SweepPlan -> the lanes it means -> which
prompts each group completes -> the bytes that will be read, exactly. Reads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from strata.engine.adapters.adapter_file import check_shapes
from strata.engine.adapters.lora import Adapter
from strata.engine.config import ScoreConfig
from strata.engine.heads.registry import CLASSIFIER_HEADS
from strata.engine.machine.machine import Budgets, Machine, choose_machine
from strata.engine.machine.rates import MachineRates
from strata.engine.model.decoder import build_decoder
from strata.engine.model.embedding import embedding_bytes
from strata.engine.model.vocabulary import vocabulary_projection
from strata.engine.model.weight_routes import route_layers
from strata.engine.plan.costs import ModelCosts, model_costs
from strata.engine.plan.planner import plan_on, predict_plan
from strata.engine.plan.sweep_plan import SweepPlan, overrides_of
from strata.engine.plan.workload import Workload, measure_workload
from strata.engine.tree.intervals import count
from strata.engine.tree.lanes import EMPTY_LANE, Lane, completed_by_group, split_lanes
from strata.engine.tree.prefix_tree import PrefixTree
from strata.engine.tree.targets import TargetTable, branches_of
from strata.engine.types import Prompt
from strata.engine.weights.checkpoint import Checkpoint

GROUP_S = 600.0
"""With --resume or --deadline a group should take no longer than about this: what a crash may cost."""
GROUPS_BEFORE_DEADLINE = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedJob:
    """A sweep with its plan, the prompts that each group completes, and what the plan was made with."""

    sweep: SweepJob
    completed: tuple[tuple[int, ...], ...]
    rates: MachineRates
    budgets: Budgets


def plan_job(
    config: ScoreConfig,
    head: str,
    checkpoint: Checkpoint,
    adapters: tuple[Adapter, ...],
    prompts: Sequence[Prompt],
    tree: PrefixTree,
    targets: TargetTable,
) -> PlannedJob:
    """Plans the sweep of a tree.

    Raises:
        InputError: a device that is not there, weights or adapters that do not fit the model, or too small
            a budget.
    """
    machine = choose_machine(config, checkpoint)
    dtype = machine.dtype
    decoder = build_decoder(checkpoint.config, dtype)
    if machine.linear == "int8":
        decoder.quantize_linears()
    shapes = [decoder.layer_shapes(layer) for layer in range(checkpoint.num_layers)]
    for adapter in adapters:
        for layer, layer_shapes in enumerate(shapes):
            check_shapes(adapter, layer_shapes, layer_index=layer)
    costs = model_costs(checkpoint.config, route_layers(checkpoint, decoder, dtype, adapters), dtype)
    norm_bytes = sum(
        source.num_bytes for name, source in checkpoint.weights.items() if name.startswith("norm.")
    )
    work = measure_workload(
        costs,
        token_ids=tree.token_ids,
        position_ids=tree.position_ids,
        scored=targets.scored,
        num_members=max(1, len(adapters)),
        norm_bytes=norm_bytes,
        head_bytes=head_bytes(head, checkpoint, adapters, targets, targets),
        embedding_row_bytes=embedding_bytes(checkpoint, 1),
    )
    plan = _choose_plan(config, costs, work, machine)
    plan, groups = settle_groups(tree, targets.scored, plan)
    plan = predict_plan(plan, costs, work, machine.rates)
    plan = count_public_keys(plan, costs, groups, max(1, len(adapters)))
    job = SweepJob(checkpoint=checkpoint, tree=tree, scored=targets.scored, plan=plan, adapters=adapters)
    completed = completed_by_group(prompts, targets, groups)
    total = exact_bytes(job, head, costs, work, completed, prompts, targets)
    job = replace(job, plan=replace(plan, bytes_read=total))
    return PlannedJob(sweep=job, completed=completed, rates=machine.rates, budgets=machine.budgets)


def _choose_plan(config: ScoreConfig, costs: ModelCosts, work: Workload, machine: Machine) -> SweepPlan:
    """The planner's choice; with more groups when the run may be cut short and the user fixed none."""
    overrides = overrides_of(config)
    choose = partial(plan_on, machine, costs, work)
    plan = choose(overrides=overrides)
    wanted = groups_wanted(config, plan.predicted_s)
    if config.num_groups is None and wanted > plan.num_groups:
        return choose(overrides=replace(overrides, num_groups=wanted))
    return plan


def settle_groups(
    tree: PrefixTree, scored: np.ndarray, plan: SweepPlan
) -> tuple[SweepPlan, list[tuple[Lane, ...]]]:
    """The plan with the number of groups that its lanes really make: a small tree has few runs."""
    groups = plan_lanes(tree, scored, plan)
    while len(groups) != plan.num_groups:
        plan = replace(plan, num_groups=len(groups))
        groups = plan_lanes(tree, scored, plan)
    return plan, groups


def count_public_keys(
    plan: SweepPlan, costs: ModelCosts, groups: Sequence[tuple[Lane, ...]], num_members: int
) -> SweepPlan:
    """The plan with the memory of the public tokens' keys and values, which stay for the whole run."""
    num_public = sum(count(lane.public) for lanes in groups for lane in lanes if lane.publishes)
    size = num_public * costs.num_layers * costs.key_value_bytes_per_token * num_members
    on_cpu = plan.devices[0] == "cpu"
    return replace(
        plan, memory_bytes=plan.memory_bytes + size, host_bytes=plan.host_bytes + (size if on_cpu else 0)
    )


def groups_wanted(config: ScoreConfig, predicted_s: float) -> int:
    """Groups that a run which may be cut short should have."""
    if config.deadline is not None:
        return min(GROUPS_BEFORE_DEADLINE, math.ceil(predicted_s / 1.0))
    return math.ceil(predicted_s / GROUP_S) if config.resume else 1


def exact_bytes(
    job: SweepJob,
    head: str,
    costs: ModelCosts,
    work: Workload,
    completed: tuple[tuple[int, ...], ...],
    prompts: Sequence[Prompt],
    targets: TargetTable,
) -> int:
    """Bytes that the run will read: layers, embedding rows a group, final norm, heads a group."""
    resident = set(job.plan.resident_layers)
    again = sum(size for layer, size in enumerate(costs.stored_bytes) if layer not in resident)
    layers = sum(costs.stored_bytes) + (len(completed) - 1) * again
    embedding = len(completed) * work.distinct_tokens * work.embedding_row_bytes
    heads = sum(
        head_bytes(head, job.checkpoint, job.adapters, targets.select(branches_of(prompts, indexes)), targets)
        for indexes in completed
        if indexes
    )
    return layers + embedding + work.norm_bytes + heads


def head_bytes(
    head: str, checkpoint: Checkpoint, adapters: tuple[Adapter, ...], targets: TargetTable, whole: TargetTable
) -> int:
    """Bytes that the head reads for some targets, all members together; `whole` are the job's targets."""
    if head in CLASSIFIER_HEADS:
        return (
            0
            if adapters and adapters[0].score is not None
            else checkpoint.require("score.weight").num_bytes * max(1, len(adapters))
        )
    projection = vocabulary_projection(checkpoint)
    normalized = whole.needs_normalization(head)
    return max(1, len(adapters)) * projection.bytes_needed(targets.token_ids, normalized=normalized)


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepJob:
    """What a sweep computes: readouts at `scored` (ascending stream indexes) of a tree, for every member."""

    checkpoint: Checkpoint
    tree: PrefixTree
    scored: np.ndarray
    plan: SweepPlan
    adapters: tuple[Adapter, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """Names of what is scored side by side: the adapters, or the base model alone."""
        return tuple(adapter.name for adapter in self.adapters) or (BASE_MEMBER,)


def plan_lanes(tree: PrefixTree, scored: np.ndarray, plan: SweepPlan) -> list[tuple[Lane, ...]]:
    """The lanes of every group, one a device; a small job's last lanes may be empty."""
    num_devices = len(plan.devices)
    lanes = split_lanes(tree, scored, plan.num_groups * num_devices, plan.micro_batch_tokens)
    missing = -len(lanes) % num_devices
    lanes += (EMPTY_LANE,) * missing
    return [lanes[first : first + num_devices] for first in range(0, len(lanes), num_devices)]


BASE_MEMBER = "base"
