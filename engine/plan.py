"""Decides, before any weight is read, how a job is swept: groups, micro-batch, residency, hidden store.

Every candidate (groups x hidden store) that fits the memory budgets gets as many resident layers as still
fit; the one with the least predicted time wins, then the one with fewer groups, then RAM before disk. Time of
a sweep = max(compute, reading of streamed weights) + the first layer's read + a hidden store's traffic.
Independent check: bytes and tokens of a run equal the plan's exactly (tests); time is a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from strata.engine.costs import ModelCosts, sweep_flops
from strata.engine.hidden_store import StoreKind
from strata.engine.machine import DTYPES, GIB, MachineRates
from strata.engine.types import InputError
from strata.kernels.prefix_attention.attend import TILE_ROWS

DEFAULT_MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
SMALLEST_MICRO_BATCH_TOKENS = 16
MAX_GROUPS = 64
GEMM_EFFICIENCY = 0.95
"""Share of the measured GEMM rate that a layer's GEMMs reach between the other operations."""
ATTENTION_EFFICIENCY = 0.4
"""Useful attention FLOP/s as a share of the GEMM rate."""
SLOTS = 2
"""Streamed layers in memory at once: the one being computed and the next."""


@dataclass(frozen=True, kw_only=True)
class PlanOverrides:
    """What the user fixes; None leaves the choice to the planner."""

    micro_batch_tokens: int | None = None
    num_groups: int | None = None
    resident_layers: int | None = None
    hidden_store: StoreKind | None = None

    def __post_init__(self) -> None:
        for name, least in (("micro_batch_tokens", 1), ("num_groups", 1), ("resident_layers", 0)):
            setting = getattr(self, name)
            if setting is not None and setting < least:
                raise InputError(
                    f"--{name.replace('_', '-')}: {setting} is too small; expected at least {least}"
                )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The size of a job: what the planner knows of a tree.

    `distinct_tokens` are distinct token ids of the job; `head_bytes` is what a group's head reads of the
    checkpoint.
    """

    num_tokens: int
    num_scored: int
    longest_branch_tokens: int
    distinct_tokens: int
    num_members: int
    gemm_flops: float
    attention_flops: float
    norm_bytes: int
    head_bytes: int
    embedding_row_bytes: int


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The decision, and what it is expected to cost.

    `bytes_read` is exact once `settle_bytes` has seen the lanes; `memory_bytes` is what each device is
    expected to hold at its peak (weights, activations, hidden states that wait on it), `host_bytes` the same
    of host RAM.
    """

    devices: tuple[str, ...]
    dtype: str
    num_groups: int
    micro_batch_tokens: int
    resident_layers: tuple[int, ...]
    num_slots: int
    hidden_store: StoreKind
    tokens: int
    flops: float
    bytes_read: int
    memory_bytes: int
    host_bytes: int
    predicted_s: float
    compute_s: float
    read_s: float
    bottleneck: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The compute dtype."""
        return DTYPES[self.dtype]


def readout_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """What readouts are kept in: the compute dtype, but float32 for float16, which they may overflow."""
    return torch.float32 if compute_dtype is torch.float16 else compute_dtype


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Bytes allowed on each device and in host RAM; on CPU both limit the same memory."""

    device_bytes: int
    host_bytes: int


def measure_workload(
    costs: ModelCosts,
    *,
    token_ids: np.ndarray,
    position_ids: np.ndarray,
    scored: np.ndarray,
    num_members: int,
    norm_bytes: int,
    head_bytes: int,
    embedding_row_bytes: int,
) -> Workload:
    """The size of a tree's job."""
    gemm, attention = sweep_flops(costs, position_ids, scored)
    return Workload(
        num_tokens=len(token_ids),
        num_scored=len(scored),
        longest_branch_tokens=int(position_ids.max()) + 1,
        distinct_tokens=len(np.unique(token_ids)),
        num_members=num_members,
        gemm_flops=gemm * num_members,
        attention_flops=attention * num_members,
        norm_bytes=norm_bytes,
        head_bytes=head_bytes,
        embedding_row_bytes=embedding_row_bytes,
    )


def plan_sweep(
    costs: ModelCosts,
    work: Workload,
    *,
    devices: tuple[str, ...],
    dtype: str,
    budgets: Budgets,
    rates: MachineRates,
    overrides: PlanOverrides,
) -> SweepPlan:
    """Chooses the fastest plan that fits.

    Raises:
        InputError: not even two layers and the smallest micro-batch fit the budget (says how much would).
    """
    least: SweepPlan | None = None
    best: SweepPlan | None = None
    for size in _micro_batch_sizes(work, devices, overrides):
        for candidate in _candidates(costs, work, devices, dtype, budgets, rates, overrides, size):
            if least is None or candidate.memory_bytes < least.memory_bytes:
                least = candidate
            if fits(candidate, budgets) and (best is None or _rank(candidate) < _rank(best)):
                best = candidate
        if best is not None:
            return best
    assert least is not None
    limit = "--memory-gib" if least.memory_bytes > budgets.device_bytes else "--host-memory-gib"
    needed = max(least.memory_bytes, least.host_bytes if limit != "--memory-gib" else 0) / GIB
    needed = math.ceil(needed * 100) / 100
    raise InputError(
        f"{limit}: two layers of this model and a micro-batch do not fit "
        f"{budgets.device_bytes / GIB:.2f} GiB on a device and "
        f"{budgets.host_bytes / GIB:.2f} GiB in RAM; expected at least {needed:.2f} GiB"
    )


def fits(plan: SweepPlan, budgets: Budgets) -> bool:
    """Whether a plan stays inside the budgets."""
    return plan.memory_bytes <= budgets.device_bytes and plan.host_bytes <= budgets.host_bytes


def _rank(plan: SweepPlan) -> tuple[float, int, bool]:
    return (round(plan.predicted_s, 2), plan.num_groups, plan.hidden_store == "disk")


def _micro_batch_sizes(work: Workload, devices: tuple[str, ...], overrides: PlanOverrides) -> Iterator[int]:
    """The usual size first; halves of it when nothing fits."""
    if overrides.micro_batch_tokens is not None:
        yield overrides.micro_batch_tokens
        return
    size = DEFAULT_MICRO_BATCH_TOKENS[devices[0].split(":")[0]]
    while size >= SMALLEST_MICRO_BATCH_TOKENS:
        yield size
        size //= 2


def _candidates(
    costs: ModelCosts,
    work: Workload,
    devices: tuple[str, ...],
    dtype: str,
    budgets: Budgets,
    rates: MachineRates,
    overrides: PlanOverrides,
    size: int,
) -> Iterator[SweepPlan]:
    on_cpu = devices[0] == "cpu"
    kinds: tuple[StoreKind, ...] = ("ram", "disk") if on_cpu else ("device", "ram", "disk")
    for kind in kinds if overrides.hidden_store is None else (overrides.hidden_store,):
        for num_groups in _group_counts(overrides):
            bare = SweepPlan(
                devices=devices,
                dtype=dtype,
                num_groups=num_groups,
                micro_batch_tokens=size,
                resident_layers=(),
                num_slots=SLOTS,
                hidden_store=kind,
                tokens=work.num_tokens * work.num_members,
                flops=work.gemm_flops + work.attention_flops,
                bytes_read=0,
                memory_bytes=0,
                host_bytes=0,
                predicted_s=0.0,
                compute_s=0.0,
                read_s=0.0,
                bottleneck="",
            )
            yield _with_residency(bare, costs, work, budgets, rates, overrides)


def _group_counts(overrides: PlanOverrides) -> Iterator[int]:
    if overrides.num_groups is not None:
        yield overrides.num_groups
        return
    count = 1
    while count <= MAX_GROUPS:
        yield count
        count *= 2


def _with_residency(
    plan: SweepPlan,
    costs: ModelCosts,
    work: Workload,
    budgets: Budgets,
    rates: MachineRates,
    overrides: PlanOverrides,
) -> SweepPlan:
    """The plan with as many resident layers as fit (or as asked for), and its costs."""
    if overrides.resident_layers is not None:
        count = min(overrides.resident_layers, costs.num_layers)
        return _price(
            replace(plan, resident_layers=spread_layers(costs.num_layers, count)), costs, work, rates
        )
    for count in (costs.num_layers, *range(costs.num_layers - SLOTS, -1, -1)):
        if count < 0:
            break
        candidate = _price(
            replace(plan, resident_layers=spread_layers(costs.num_layers, count)), costs, work, rates
        )
        if fits(candidate, budgets):
            return candidate
    return _price(plan, costs, work, rates)


def spread_layers(num_layers: int, count: int) -> tuple[int, ...]:
    """`count` layers spread evenly, so that streamed ones have resident ones' compute to hide behind."""
    if count >= num_layers:
        return tuple(range(num_layers))
    return (
        tuple(sorted({(2 * index + 1) * num_layers // (2 * count) for index in range(count)}))
        if count
        else ()
    )


def _price(plan: SweepPlan, costs: ModelCosts, work: Workload, rates: MachineRates) -> SweepPlan:
    streamed = [layer for layer in range(costs.num_layers) if layer not in plan.resident_layers]
    once = sum(costs.stored_bytes) + work.norm_bytes + plan.num_groups * work.head_bytes
    again = (plan.num_groups - 1) * sum(costs.stored_bytes[layer] for layer in streamed)
    embedding = plan.num_groups * work.distinct_tokens * work.embedding_row_bytes
    bytes_read = once + again + embedding
    speed = rates.gemm_flop_per_s * len(plan.devices)
    compute_s = work.gemm_flops / (speed * GEMM_EFFICIENCY) + work.attention_flops / (
        speed * ATTENTION_EFFICIENCY
    )
    read_s = bytes_read / rates.disk_bytes_per_s
    copy_s = 0.0
    if rates.host_to_device_bytes_per_s:
        copy_s = (bytes_read + _hidden_traffic_bytes(plan, costs, work)) / rates.host_to_device_bytes_per_s
    store_s = 0.0
    if plan.hidden_store == "disk":
        store_s = (
            2
            * costs.num_layers
            * work.num_tokens
            * costs.hidden_size
            * costs.itemsize
            / rates.disk_bytes_per_s
        )
    first_s = plan.num_groups * costs.stored_bytes[0] / rates.disk_bytes_per_s
    parts = {"compute": compute_s, "disk": read_s, "host-to-device copies": copy_s}
    memory, host = _memory_bytes(plan, costs, work)
    return replace(
        plan,
        bytes_read=bytes_read,
        memory_bytes=memory,
        host_bytes=host,
        predicted_s=max(parts.values()) + store_s + first_s,
        compute_s=compute_s,
        read_s=read_s,
        bottleneck=max(parts, key=lambda name: parts[name]),
    )


def _hidden_traffic_bytes(plan: SweepPlan, costs: ModelCosts, work: Workload) -> int:
    if plan.hidden_store == "device":
        return 0
    return 2 * costs.num_layers * work.num_tokens * work.num_members * costs.hidden_size * costs.itemsize


def _memory_bytes(plan: SweepPlan, costs: ModelCosts, work: Workload) -> tuple[int, int]:
    """Peak bytes on the busiest device and in host RAM; on CPU the same figure, all workers together."""
    on_cpu = plan.devices[0] == "cpu"
    streamed = [layer for layer in range(costs.num_layers) if layer not in plan.resident_layers]
    slots = min(plan.num_slots, len(streamed))
    resident = sum(costs.weight_bytes[layer] for layer in plan.resident_layers)
    buffers = slots * max((costs.buffer_bytes[layer] for layer in streamed), default=0)
    placed = slots * max((costs.weight_bytes[layer] for layer in streamed), default=0)
    converted = slots * max((costs.converted_bytes[layer] for layer in streamed), default=0)
    lane_tokens = math.ceil(work.num_tokens / (plan.num_groups * len(plan.devices)))
    hidden = lane_tokens * costs.hidden_size * costs.itemsize * work.num_members
    batch = min(plan.micro_batch_tokens, lane_tokens)
    keys = work.longest_branch_tokens + batch
    tile_rows = min(TILE_ROWS["cpu" if on_cpu else "cuda"], batch)
    working = batch * costs.activation_bytes_per_token + 3 * keys * costs.key_value_bytes_per_token
    working += costs.attention_scratch_bytes(tile_rows, work.longest_branch_tokens + tile_rows, on_cpu=on_cpu)
    embedding = work.distinct_tokens * work.embedding_row_bytes
    itemsize = readout_dtype(plan.torch_dtype).itemsize
    readouts = work.num_scored * costs.hidden_size * itemsize * work.num_members
    if on_cpu:
        workers = len(plan.devices)
        in_ram = hidden * workers if plan.hidden_store != "disk" else 0
        total = resident + buffers + converted + in_ram + readouts + max(working * workers, embedding)
        return total, total
    device = resident + placed + max(working, embedding) + (hidden if plan.hidden_store == "device" else 0)
    host = buffers + converted + embedding + readouts
    return device, host + (hidden * len(plan.devices) if plan.hidden_store == "ram" else 0)
