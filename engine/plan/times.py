"""Turns a plan, a model's costs and a machine's rates into each layer's seconds of each resource.

A layer's computing time on one worker is a sum: matrices, attention's products, its softmax, element-wise
operations, and for every micro-batch one pass over the weights and a fixed cost. The rates come from whole
layers (`strata bench calibrate`); `simulation` turns the seconds into a prediction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from strata.engine.machine.rates import MachineRates
from strata.engine.plan.costs import ModelCosts
from strata.engine.plan.memory import hidden_bytes, lane_tokens
from strata.engine.plan.sweep_plan import SweepChoice
from strata.engine.plan.workload import Workload


def sweep_times(plan: SweepChoice, costs: ModelCosts, work: Workload, rates: MachineRates) -> SweepTimes:
    """Seconds of every layer of one worker, which stands for all."""
    compute_s = compute_seconds(plan, costs, work, rates)
    resident = set(plan.resident_layers)
    store_s = store_seconds(plan, costs, work, rates)
    on_cpu = plan.devices[0] == "cpu"
    link = None if on_cpu else rates.host_to_device_bytes_per_s
    read_again_s = reading_again_seconds(costs, rates)
    layers = []
    for layer in range(costs.num_layers):
        stored = costs.stored_bytes[layer]
        decode_s = sum(rates.decode_s(step, count) for step, count in costs.decode_weights[layer].items())
        layers.append(
            LayerTimes(
                read_s=stored / rates.disk_bytes_per_s,
                read_again_s=read_again_s[layer],
                copy_s=0.0 if link is None else stored / link,
                decode_s=decode_s,
                compute_s=compute_s[layer],
                store_s=store_s,
                interference_s=decode_s + (stored * rates.read_interference if on_cpu else 0.0),
                resident=layer in resident,
            )
        )
    return SweepTimes(
        layers=tuple(layers),
        num_sweeps=plan.num_groups,
        num_slots=plan.num_slots,
        embedding_s=work.distinct_tokens * work.embedding_row_bytes / rates.disk_bytes_per_s,
        head_s=work.head_bytes / rates.disk_bytes_per_s,
        decode_by_reader=on_cpu,
    )


def reading_again_seconds(costs: ModelCosts, rates: MachineRates) -> tuple[float, ...]:
    """Seconds of reading each layer in later sweeps; a cache keeps the first layers, until it is full."""
    room = math.inf if rates.cache_bytes is None else rates.cache_bytes
    cached = rates.cached_bytes_per_s or rates.disk_bytes_per_s
    seconds, kept = [], 0
    for stored in costs.stored_bytes:
        kept += stored
        seconds.append(stored / (cached if kept <= room else rates.disk_bytes_per_s))
    return tuple(seconds)


def compute_seconds(
    plan: SweepChoice, costs: ModelCosts, work: Workload, rates: MachineRates
) -> tuple[float, ...]:
    """Seconds of each layer over all micro-batches of one worker in one group.

    A card computes while the host launches what comes next: only the longer of both counts.
    """
    layer_rates, share = rates.layer_rates, 1 / (plan.num_groups * len(plan.devices))
    tokens = share * work.num_tokens * work.num_members
    scored = share * work.num_scored * work.num_members
    calls = math.ceil(lane_tokens(plan, work) / plan.micro_batch_tokens) * work.num_members
    gemm = _spread(share * work.gemm_flops, _gemm_weights(costs, work))
    attention = _spread(share * work.attention_flops, _attention_weights(costs, work))
    flops_per_score = 4 * costs.head_dim
    masked = layer_rates.masked_keys * costs.num_heads
    seconds = []
    for layer in range(costs.num_layers):
        rows = tokens if layer < costs.num_layers - 1 else scored
        scores = attention[layer] / flops_per_score + rows * masked
        computing_s = (
            gemm[layer] / layer_rates.linear_flop_per_s
            + scores * flops_per_score / layer_rates.attention_flop_per_s
            + scores / layer_rates.softmax_scores_per_s
            + rows * (costs.hidden_size + costs.intermediate_size) / layer_rates.elements_per_s
            + calls * costs.weight_bytes[layer] / layer_rates.weights_bytes_per_s
        )
        calls_s = calls * layer_rates.call_s
        on_cpu = plan.devices[0] == "cpu"
        seconds.append(computing_s + calls_s if on_cpu else max(computing_s, calls_s))
    return tuple(seconds)


def store_seconds(plan: SweepChoice, costs: ModelCosts, work: Workload, rates: MachineRates) -> float:
    """Seconds of writing and reading one worker's hidden states, a layer of a group; the disk is shared."""
    size = hidden_bytes(plan, costs, work)
    on_cpu = plan.devices[0] == "cpu"
    link = None if on_cpu else rates.host_to_device_bytes_per_s
    seconds = 0.0
    if plan.hidden_store == "disk":
        disk = rates.store_bytes_per_s or rates.disk_bytes_per_s
        seconds += 2 * size * len(plan.devices) / disk
    if plan.hidden_store != "device" and link is not None:
        seconds += 2 * size / link
    if plan.hidden_store == "ram" and on_cpu:
        seconds += size / rates.host_bytes_per_s
    return seconds


def _gemm_weights(costs: ModelCosts, work: Workload) -> list[float]:
    """How the FLOPs of matrices spread over layers: the last one makes keys and values of unscored tokens."""
    unscored = costs.key_value_weights * (work.num_tokens - work.num_scored)
    body = [float(weights * work.num_tokens) for weights in costs.linear_weights[:-1]]
    return [*body, float(costs.linear_weights[-1] * work.num_scored + unscored)]


def _attention_weights(costs: ModelCosts, work: Workload) -> list[float]:
    """How the FLOPs of attention spread over layers: a window sees less, the last layer has few rows."""
    longest = work.longest_branch_tokens
    seen = [float(min(window or longest, longest)) for window in costs.windows]
    # Scored rows stand at the ends of branches and see twice what a row sees on average.
    last = seen[-1] * min(2 * work.num_scored, work.num_tokens)
    return [keys * work.num_tokens for keys in seen[:-1]] + [last]


def _spread(total: float, weights: list[float]) -> list[float]:
    whole = sum(weights)
    return [total * weight / whole for weight in weights]


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Seconds that one layer takes of each resource, alone.

    Attributes:
        read_s: from disk, in the first sweep.
        read_again_s: from disk or a cache, in later sweeps.
        copy_s: to a device.
        decode_s: of the stored weights.
        compute_s: over all micro-batches of a group, on each device.
        store_s: of the group's hidden states, written and read back.
        interference_s: what its reading and decoding take from the processor that computes.
        resident: stays in memory.
    """

    read_s: float
    compute_s: float
    read_again_s: float | None = None
    copy_s: float = 0.0
    decode_s: float = 0.0
    store_s: float = 0.0
    interference_s: float = 0.0
    resident: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepTimes:
    """What a simulation is made of: a layer's times each, and how they are swept.

    `embedding_s` and `head_s` are disk time before the first layer and after the last one of every sweep;
    `decode_by_reader` is True on CPU.
    """

    layers: tuple[LayerTimes, ...]
    num_sweeps: int
    num_slots: int
    embedding_s: float = 0.0
    head_s: float = 0.0
    decode_by_reader: bool = True
