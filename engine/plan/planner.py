"""Decides, before any weight is read, how a job is swept: groups, micro-batch, residency, hidden store.

Every candidate (micro-batch x groups x hidden store) that fits the memory budgets gets as many resident
layers as still fit; the one with the least predicted time wins, then the one with fewer groups, then RAM
before disk. The time comes from a simulation of the sweep, played only for candidates that could win.
Independent check: bytes and tokens of a run equal the plan's exactly (tests); time is a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from strata.engine.machine.devices import DTYPES, GIB
from strata.engine.machine.machine import Budgets, Machine
from strata.engine.machine.rates import MachineRates
from strata.engine.plan.costs import ModelCosts
from strata.engine.plan.memory import PeakBytes, predict_memory
from strata.engine.plan.overrides import PlanOverrides, StoreKind
from strata.engine.plan.simulation import Resource, simulate_sweep
from strata.engine.plan.sweep_plan import SweepChoice, SweepPlan
from strata.engine.plan.times import SweepTimes, sweep_times
from strata.engine.plan.workload import Workload
from strata.engine.types import InputError

DEFAULT_MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
FAST_CPU_FLOP_PER_S = 5e11
FAST_CPU_TOKENS = 2048
"""On a CPU each product first puts its weights in order, at about 10 GB/s. For a weight of two bytes and two
FLOPs a token that takes a tenth of the product's time at 1 GFLOP/s for each token of the micro-batch: 512
tokens at the 430 GFLOP/s of two Zen 4 cores, 2,048 with AMX. Nothing lies between: on a shared machine AMX
gives 0.6 to 2.3 TFLOP/s within minutes, and a size that followed would change the bits of results."""
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


def plan_sweep(costs: ModelCosts, work: Workload, machine: Machine, overrides: PlanOverrides) -> SweepPlan:
    """Chooses the fastest plan that fits.

    Args:
        costs: the model's.
        work: the job's size.
        machine: what it runs on.
        overrides: what the user fixes.

    Raises:
        InputError: not even two layers and the smallest micro-batch fit the budget (says how much would).
    """
    return _Search(costs=costs, work=work, machine=machine, overrides=overrides).find()


def usual_micro_batch(machine: Machine) -> int:
    """Tokens of a micro-batch that suit a kind of device, before anything of its layers was measured."""
    if not machine.on_cpu:
        return DEFAULT_MICRO_BATCH_TOKENS["cuda"]
    # Rates are a worker's; several share the CPU, and its memory's rate.
    flop_per_s = machine.rates.gemm_flop_per_s * len(machine.devices)
    is_fast = machine.linear == "dense" and flop_per_s > FAST_CPU_FLOP_PER_S
    return FAST_CPU_TOKENS if is_fast else DEFAULT_MICRO_BATCH_TOKENS["cpu"]


def predict_plan(plan: SweepPlan, costs: ModelCosts, work: Workload, rates: MachineRates) -> SweepPlan:
    """The plan with its bytes and seconds predicted anew, for one whose groups have changed."""
    memory = PeakBytes(device=plan.memory_bytes, host=plan.host_bytes)
    return _price(Candidate(plan, memory), sweep_times(plan, costs, work, rates), costs, work, rates)


def fits(memory: PeakBytes, budgets: Budgets) -> bool:
    """Whether a choice stays inside the budgets."""
    return memory.device <= budgets.device_bytes and memory.host <= budgets.host_bytes


class Candidate(NamedTuple):
    """A choice, and the memory that it takes."""

    choice: SweepChoice
    memory: PeakBytes


@dataclass(kw_only=True, eq=False)
class _Search:
    """The search for a plan; `least` is the least memory that any candidate seen takes."""

    costs: ModelCosts
    work: Workload
    machine: Machine
    overrides: PlanOverrides
    least: PeakBytes | None = None

    def find(self) -> SweepPlan:
        best: SweepPlan | None = None
        for size in self._micro_batch_sizes():
            allowed_s = math.inf if best is None else best.predicted_s * WORTH_ANOTHER_SIZE
            best = self._best_of_size(size, allowed_s) or best
        if best is None and self.overrides.micro_batch_tokens is None:
            while best is None and size > SMALLEST_MICRO_BATCH_TOKENS:
                size //= 2
                best = self._best_of_size(size, math.inf)
        if best is None:
            raise self._does_not_fit()
        return best

    def _micro_batch_sizes(self) -> tuple[int, ...]:
        """The usual size first; others where the rates can tell them apart."""
        if self.overrides.micro_batch_tokens is not None:
            return (self.overrides.micro_batch_tokens,)
        usual = usual_micro_batch(self.machine)
        if self.machine.rates.layer is not None:
            return (usual, 2 * usual, usual // 2, usual // 4)
        # A smaller one may leave room for layers that would be read again.
        smallest = DEFAULT_MICRO_BATCH_TOKENS["cpu" if self.machine.on_cpu else "cuda"]
        return (usual,) if usual == smallest else (usual, smallest)

    def _best_of_size(self, size: int, allowed_s: float) -> SweepPlan | None:
        """The fastest plan of a micro-batch size that takes less than `allowed_s`."""
        best: SweepPlan | None = None
        for choice, memory in self._candidates(size):
            if self.least is None or memory.device < self.least.device:
                self.least = memory
            if not fits(memory, self.machine.budgets):
                continue
            times = sweep_times(choice, self.costs, self.work, self.machine.rates)
            limit_s = allowed_s if best is None else min(allowed_s, best.predicted_s + 0.01)
            if _least_seconds(times) > limit_s:
                continue
            priced = _price(Candidate(choice, memory), times, self.costs, self.work, self.machine.rates)
            if priced.predicted_s < allowed_s and (best is None or _rank(priced) < _rank(best)):
                best = priced
        return best

    def _candidates(self, size: int) -> Iterator[Candidate]:
        """Choices of a micro-batch size with their memory."""
        kinds: tuple[StoreKind, ...] = ("ram", "disk") if self.machine.on_cpu else ("device", "ram", "disk")
        fixed = self.overrides.hidden_store
        for kind in kinds if fixed is None else (fixed,):
            for num_groups in _group_counts(self.overrides):
                yield self._with_residency(
                    SweepChoice(
                        devices=self.machine.devices,
                        dtype=_dtype_name(self.machine),
                        linear=self.machine.linear,
                        num_groups=num_groups,
                        micro_batch_tokens=size,
                        resident_layers=(),
                        num_slots=SLOTS,
                        hidden_store=kind,
                    )
                )

    def _with_residency(self, choice: SweepChoice) -> Candidate:
        """The choice with as many resident layers as fit (or as asked for), and its memory."""
        num_layers, budgets = self.costs.num_layers, self.machine.budgets

        def holding(count: int) -> Candidate:
            held = replace(choice, resident_layers=spread_layers(num_layers, count))
            return Candidate(held, predict_memory(held, self.costs, self.work))

        if self.overrides.resident_layers is not None:
            return holding(min(self.overrides.resident_layers, num_layers))
        whole = holding(num_layers)
        if fits(whole.memory, budgets):
            return whole
        most, too_many = holding(0), max(1, num_layers - SLOTS + 1)
        if not fits(most.memory, budgets):
            return most
        # A resident layer more never takes less memory, but for models with layers of very different sizes.
        while too_many - len(most.choice.resident_layers) > 1:
            middle = holding((len(most.choice.resident_layers) + too_many) // 2)
            if fits(middle.memory, budgets):
                most = middle
            else:
                too_many = len(middle.choice.resident_layers)
        return most

    def _does_not_fit(self) -> InputError:
        assert self.least is not None
        budgets = self.machine.budgets
        limit = "--memory-gib" if self.least.device > budgets.device_bytes else "--host-memory-gib"
        needed = max(self.least.device, self.least.host if limit != "--memory-gib" else 0) / GIB
        needed = math.ceil(needed * 100) / 100
        return InputError(
            f"{limit}: two layers of this model and a micro-batch do not fit "
            f"{budgets.device_bytes / GIB:.2f} GiB on a device and "
            f"{budgets.host_bytes / GIB:.2f} GiB in RAM; expected at least {needed:.2f} GiB"
        )


def _dtype_name(machine: Machine) -> str:
    return next(name for name, known in DTYPES.items() if known is machine.dtype)


def _rank(plan: SweepPlan) -> tuple[float, int, bool]:
    return (round(plan.predicted_s, 2), plan.num_groups, plan.hidden_store == "disk")


def _group_counts(overrides: PlanOverrides) -> Iterator[int]:
    if overrides.num_groups is not None:
        yield overrides.num_groups
        return
    count = 1
    while count <= MAX_GROUPS:
        yield count
        count *= 2


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


def _price(
    candidate: Candidate, times: SweepTimes, costs: ModelCosts, work: Workload, rates: MachineRates
) -> SweepPlan:
    """The plan that a candidate is: with its bytes and its simulated seconds."""
    choice, memory = candidate
    swept = simulate_sweep(times)
    return SweepPlan(
        **{name: getattr(choice, name) for name in SweepChoice.__dataclass_fields__},
        tokens=work.num_tokens * work.num_members,
        flops=work.gemm_flops + work.attention_flops,
        bytes_read=_bytes_read(choice, costs, work),
        memory_bytes=memory.device,
        host_bytes=memory.host,
        predicted_s=swept.total_s,
        compute_s=swept.busy_s["compute"],
        read_s=swept.busy_s["disk"],
        decode_s=swept.busy_s["decode"],
        copy_s=swept.busy_s["copy"],
        store_s=swept.busy_s["store"],
        stall_s=swept.stall_s,
        bottleneck=RESOURCE_NAMES[swept.bottleneck],
        rates_from=rates.rates_from,
    )


def _bytes_read(choice: SweepChoice, costs: ModelCosts, work: Workload) -> int:
    a_group = work.head_bytes + work.distinct_tokens * work.embedding_row_bytes
    return layer_bytes(choice, costs) + work.norm_bytes + choice.num_groups * a_group


def layer_bytes(choice: SweepChoice, costs: ModelCosts) -> int:
    """Bytes of layers that a run reads: all once, the streamed ones again in every later group."""
    resident = set(choice.resident_layers)
    streamed = sum(size for layer, size in enumerate(costs.stored_bytes) if layer not in resident)
    return sum(costs.stored_bytes) + (choice.num_groups - 1) * streamed
