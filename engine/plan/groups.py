"""From a plan to its groups of lanes, and what is known once they are: uneven shares, what lasts for the run.

Plans nothing: how many groups and lanes there are to be, and how large micro-batches are, a plan says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from strata.engine.plan.costs import ModelCosts
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.tree.intervals import count
from strata.engine.tree.lanes import EMPTY_LANE, Lane, split_lanes
from strata.engine.tree.targets import ScoredTree

Groups = tuple[tuple[Lane, ...], ...]
"""The lanes of every group, one a device."""


def plan_lanes(scored_tree: ScoredTree, plan: SweepPlan) -> Groups:
    """The lanes of every group, one a device; a small job's last lanes may be empty."""
    num_devices = len(plan.devices)
    num_lanes = plan.num_groups * num_devices
    lanes = split_lanes(scored_tree.tree, scored_tree.scored, num_lanes, plan.micro_batch_tokens)
    missing = -len(lanes) % num_devices
    lanes += (EMPTY_LANE,) * missing
    return tuple(lanes[first : first + num_devices] for first in range(0, len(lanes), num_devices))


def settle_groups(
    scored_trees: Sequence[ScoredTree], plan: SweepPlan
) -> tuple[SweepPlan, tuple[Groups, ...]]:
    """The plan with the number of groups that the lanes really make: small trees have few runs.

    Returns:
        The plan, and each tree's groups; a tree that has fewer than others has empty ones in the end.
    """
    groups = [plan_lanes(tree, plan) for tree in scored_trees]
    while max(map(len, groups)) != plan.num_groups:
        plan = replace(plan, num_groups=max(map(len, groups)))
        groups = [plan_lanes(tree, plan) for tree in scored_trees]
    nothing = (EMPTY_LANE,) * len(plan.devices)
    return plan, tuple(lanes + (nothing,) * (plan.num_groups - len(lanes)) for lanes in groups)


def largest_share(groups: Groups) -> float:
    """Tokens of a group's largest lane over those of an equal share, of the most uneven group."""
    sizes = [[lane.num_tokens for lane in lanes] for lanes in groups]
    return max(max(found) * len(found) / max(sum(found), 1) for found in sizes)


def public_layer_bytes(costs: ModelCosts, groups: Sequence[tuple[Lane, ...]]) -> int:
    """Of one member's keys and values of public tokens, in one layer."""
    num_public = sum(count(lane.public) for lanes in groups for lane in lanes if lane.publishes)
    return num_public * costs.key_value_bytes_per_token


def count_lasting(plan: SweepPlan, public: Sequence[int], adapter_bytes: int) -> SweepPlan:
    """The plan with the memory of what stays for the whole run beside layers.

    Args:
        plan: without it.
        public: bytes of public keys and values, of every member and layer; they wait on the host, and beside
            GPUs in pinned memory, which torch rounds up to a power of two.
        adapter_bytes: on every device.
    """
    if plan.on_cpu:
        lasting = sum(public) + adapter_bytes
        return replace(plan, memory_bytes=plan.memory_bytes + lasting, host_bytes=plan.host_bytes + lasting)
    pinned = sum(1 << (size - 1).bit_length() for size in public if size)
    # What is taken of a layer is uploaded whole and then put in the lane's order.
    return replace(
        plan,
        memory_bytes=plan.memory_bytes + adapter_bytes + 2 * max(public, default=0),
        host_bytes=plan.host_bytes + pinned,
    )
