"""Decides, before any weight is read, how a job is swept: groups, micro-batch, residency, hidden store.

Every candidate (micro-batch x groups x hidden store) that fits the memory budgets gets as many resident
layers as still fit; the one with the least predicted time wins, then the one with fewer groups, then RAM
before disk. The time comes from a simulation of the sweep, played only for candidates that could win.
Independent check: bytes and tokens of a run equal the plan's exactly (tests); time is a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from strata.engine.machine.devices import DTYPES, GIB
from strata.engine.machine.machine import Budgets, Machine
from strata.engine.machine.rates import LinearKind, MachineRates
from strata.engine.plan.costs import ModelCosts
from strata.engine.plan.memory import predict_memory
from strata.engine.plan.simulation import Resource, simulate_sweep
from strata.engine.plan.sweep_plan import PlanOverrides, StoreKind, SweepPlan
from strata.engine.plan.times import SweepTimes, sweep_times
from strata.engine.plan.workload import Workload
from strata.engine.types import InputError

DEFAULT_MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
SMALLEST_MICRO_BATCH_TOKENS = 16
MAX_GROUPS = 64
SLOTS = 2
"""Streamed layers in memory at once: the one being computed and the next."""
WORTH_ANOTHER_SIZE = 0.98
"""Another micro-batch than the usual one must be predicted to take less than this share of the time."""
RESOURCE_NAMES: dict[Resource, str] = {
    "disk": "disk",
    "decode": "decoding",
    "copy": "host-to-device copies",
    "compute": "compute",
    "store": "hidden store",
}


def plan_sweep(
    costs: ModelCosts,
    work: Workload,
    *,
    devices: tuple[str, ...],
    dtype: str,
    budgets: Budgets,
    rates: MachineRates,
    overrides: PlanOverrides,
    linear: LinearKind = "dense",
) -> SweepPlan:
    """Chooses the fastest plan that fits.

    Raises:
        InputError: not even two layers and the smallest micro-batch fit the budget (says how much would).
    """
    usual, *others = _micro_batch_sizes(devices, rates, overrides)
    bare = _bare_plan(work, devices, dtype, linear, rates)
    least: SweepPlan | None = None
    best: SweepPlan | None = None
    for size in (usual, *others):
        allowed_s = math.inf if best is None else best.predicted_s * WORTH_ANOTHER_SIZE
        sized = replace(bare, micro_batch_tokens=size)
        found, smallest = _best_of_size(sized, costs, work, budgets, rates, overrides, allowed_s)
        if least is None or smallest.memory_bytes < least.memory_bytes:
            least = smallest
        best = found or best
    while best is None and overrides.micro_batch_tokens is None and size > SMALLEST_MICRO_BATCH_TOKENS:
        size //= 2
        sized = replace(bare, micro_batch_tokens=size)
        best, smallest = _best_of_size(sized, costs, work, budgets, rates, overrides, math.inf)
        least = smallest if least is None or smallest.memory_bytes < least.memory_bytes else least
    if best is not None:
        return best
    assert least is not None
    raise _does_not_fit(least, budgets)


def _does_not_fit(least: SweepPlan, budgets: Budgets) -> InputError:
    limit = "--memory-gib" if least.memory_bytes > budgets.device_bytes else "--host-memory-gib"
    needed = max(least.memory_bytes, least.host_bytes if limit != "--memory-gib" else 0) / GIB
    needed = math.ceil(needed * 100) / 100
    return InputError(
        f"{limit}: two layers of this model and a micro-batch do not fit "
        f"{budgets.device_bytes / GIB:.2f} GiB on a device and "
        f"{budgets.host_bytes / GIB:.2f} GiB in RAM; expected at least {needed:.2f} GiB"
    )


def _best_of_size(
    sized: SweepPlan,
    costs: ModelCosts,
    work: Workload,
    budgets: Budgets,
    rates: MachineRates,
    overrides: PlanOverrides,
    allowed_s: float,
) -> tuple[SweepPlan | None, SweepPlan]:
    """The fastest plan of a size that takes less than `allowed_s`, and the one of least memory."""
    least: SweepPlan | None = None
    best: SweepPlan | None = None
    for candidate in _candidates(sized, costs, work, budgets, overrides):
        if least is None or candidate.memory_bytes < least.memory_bytes:
            least = candidate
        if not fits(candidate, budgets):
            continue
        times = sweep_times(candidate, costs, work, rates)
        limit_s = allowed_s if best is None else min(allowed_s, best.predicted_s + 0.01)
        if _least_seconds(times) > limit_s:
            continue
        priced = _predict(candidate, times, costs, work)
        if priced.predicted_s < allowed_s and (best is None or _rank(priced) < _rank(best)):
            best = priced
    assert least is not None
    return best, least


def fits(plan: SweepPlan, budgets: Budgets) -> bool:
    """Whether a plan stays inside the budgets."""
    return plan.memory_bytes <= budgets.device_bytes and plan.host_bytes <= budgets.host_bytes


def _rank(plan: SweepPlan) -> tuple[float, int, bool]:
    return (round(plan.predicted_s, 2), plan.num_groups, plan.hidden_store == "disk")


def _micro_batch_sizes(
    devices: tuple[str, ...], rates: MachineRates, overrides: PlanOverrides
) -> tuple[int, ...]:
    """The usual size first; others where the rates can tell them apart."""
    if overrides.micro_batch_tokens is not None:
        return (overrides.micro_batch_tokens,)
    usual = DEFAULT_MICRO_BATCH_TOKENS[devices[0].split(":")[0]]
    return (usual,) if rates.layer is None else (usual, 2 * usual, usual // 2, usual // 4)


def _bare_plan(
    work: Workload, devices: tuple[str, ...], dtype: str, linear: LinearKind, rates: MachineRates
) -> SweepPlan:
    """What all candidates share; nothing decided, nothing predicted."""
    return SweepPlan(
        devices=devices,
        dtype=dtype,
        linear=linear,
        num_groups=1,
        micro_batch_tokens=0,
        resident_layers=(),
        num_slots=SLOTS,
        hidden_store="ram",
        tokens=work.num_tokens * work.num_members,
        flops=work.gemm_flops + work.attention_flops,
        bytes_read=0,
        memory_bytes=0,
        host_bytes=0,
        predicted_s=0.0,
        compute_s=0.0,
        read_s=0.0,
        bottleneck="",
        rates_from=rates.rates_from,
    )


def _candidates(
    sized: SweepPlan, costs: ModelCosts, work: Workload, budgets: Budgets, overrides: PlanOverrides
) -> Iterator[SweepPlan]:
    """Plans of a micro-batch size with their memory."""
    kinds: tuple[StoreKind, ...] = ("ram", "disk") if sized.devices[0] == "cpu" else ("device", "ram", "disk")
    for kind in kinds if overrides.hidden_store is None else (overrides.hidden_store,):
        for num_groups in _group_counts(overrides):
            candidate = replace(sized, hidden_store=kind, num_groups=num_groups)
            yield _with_residency(candidate, costs, work, budgets, overrides)


def _group_counts(overrides: PlanOverrides) -> Iterator[int]:
    if overrides.num_groups is not None:
        yield overrides.num_groups
        return
    count = 1
    while count <= MAX_GROUPS:
        yield count
        count *= 2


def _with_residency(
    plan: SweepPlan, costs: ModelCosts, work: Workload, budgets: Budgets, overrides: PlanOverrides
) -> SweepPlan:
    """The plan with as many resident layers as fit (or as asked for), and its memory."""

    def holding(count: int) -> SweepPlan:
        layers = spread_layers(costs.num_layers, count)
        held = replace(plan, resident_layers=layers)
        memory, host = predict_memory(held, costs, work)
        return replace(held, memory_bytes=memory, host_bytes=host)

    if overrides.resident_layers is not None:
        return holding(min(overrides.resident_layers, costs.num_layers))
    if fits(whole := holding(costs.num_layers), budgets):
        return whole
    most, too_many = holding(0), max(1, costs.num_layers - SLOTS + 1)
    if not fits(most, budgets):
        return most
    # A resident layer more never takes less memory, but for models with layers of very different sizes.
    while too_many - len(most.resident_layers) > 1:
        middle = holding((len(most.resident_layers) + too_many) // 2)
        if fits(middle, budgets):
            most = middle
        else:
            too_many = len(middle.resident_layers)
    return most


def spread_layers(num_layers: int, count: int) -> tuple[int, ...]:
    """`count` layers spread evenly, so that streamed ones have resident ones' compute to hide behind."""
    if count >= num_layers:
        return tuple(range(num_layers))
    return (
        tuple(sorted({(2 * index + 1) * num_layers // (2 * count) for index in range(count)}))
        if count
        else ()
    )


def _least_seconds(times: SweepTimes) -> float:
    """No simulation of these times takes less."""
    computing = sum(times_of.compute_s + times_of.store_s for times_of in times.layers)
    once = sum(times_of.read_s for times_of in times.layers)
    again = sum(times_of.read_again_s or 0.0 for times_of in times.layers if not times_of.resident)
    return max(times.num_sweeps * computing, once + (times.num_sweeps - 1) * again)


def predict_plan(plan: SweepPlan, costs: ModelCosts, work: Workload, rates: MachineRates) -> SweepPlan:
    """The plan with its bytes and seconds predicted anew, for one whose decisions have changed."""
    return _predict(plan, sweep_times(plan, costs, work, rates), costs, work)


def _predict(plan: SweepPlan, times: SweepTimes, costs: ModelCosts, work: Workload) -> SweepPlan:
    """The plan with its bytes and its simulated seconds."""
    swept = simulate_sweep(times)
    return replace(
        plan,
        bytes_read=_bytes_read(plan, costs, work),
        predicted_s=swept.total_s,
        compute_s=swept.busy_s["compute"],
        read_s=swept.busy_s["disk"],
        decode_s=swept.busy_s["decode"],
        copy_s=swept.busy_s["copy"],
        store_s=swept.busy_s["store"],
        stall_s=swept.stall_s,
        bottleneck=RESOURCE_NAMES[swept.bottleneck],
    )


def _bytes_read(plan: SweepPlan, costs: ModelCosts, work: Workload) -> int:
    resident = set(plan.resident_layers)
    streamed = sum(size for layer, size in enumerate(costs.stored_bytes) if layer not in resident)
    a_group = work.head_bytes + work.distinct_tokens * work.embedding_row_bytes
    once = sum(costs.stored_bytes) + work.norm_bytes
    return once + (plan.num_groups - 1) * streamed + plan.num_groups * a_group


def plan_on(machine: Machine, costs: ModelCosts, work: Workload, overrides: PlanOverrides) -> SweepPlan:
    """The fastest plan that fits a machine; see plan_sweep."""
    name = next(name for name, known in DTYPES.items() if known is machine.dtype)
    return plan_sweep(
        costs,
        work,
        devices=machine.devices,
        dtype=name,
        linear=machine.linear,
        budgets=machine.budgets,
        rates=machine.rates,
        overrides=overrides,
    )
