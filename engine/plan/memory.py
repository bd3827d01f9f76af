"""Predicts the peak memory of a plan: weights, buffers, activations, hidden states. Pure arithmetic on costs.

Independent check: resident sets measured beside the prediction (tests/engine/plan/test_planned_runs.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from strata.engine.plan.costs import ModelCosts
from strata.engine.plan.sweep_plan import SweepChoice, readout_dtype
from strata.engine.plan.workload import Workload
from strata.kernels.prefix_attention.backend import AttentionRequest, TileSize
from strata.kernels.prefix_attention.registry import choose_backend


class PeakBytes(NamedTuple):
    """Peak bytes on the busiest device and in host RAM; on CPU the same figure, all workers together."""

    device: int
    host: int


def predict_memory(plan: SweepChoice, costs: ModelCosts, work: Workload) -> PeakBytes:
    """Peak bytes on the busiest device and in host RAM; on CPU the same figure, all workers together."""
    on_cpu, workers = plan.devices[0] == "cpu", len(plan.devices)
    hidden = hidden_bytes(plan, costs, work)
    embedding = work.distinct_tokens * work.embedding_row_bytes
    readouts = work.num_scored * costs.hidden_size * readout_dtype(plan.torch_dtype).itemsize
    readouts *= work.num_members
    streamed = [layer for layer in range(costs.num_layers) if layer not in plan.resident_layers]
    slots = min(plan.num_slots, len(streamed))
    buffers = slots * max((costs.buffer_bytes[layer] for layer in streamed), default=0)
    # A resident layer passes through a buffer of its own, which on a CPU stays where weights are views of it.
    passing = max(
        (costs.buffer_bytes[n] for n in plan.resident_layers if costs.converted_bytes[n] or not on_cpu),
        default=0,
    )
    working = _working_bytes(plan, costs, work)
    if on_cpu:
        resident = sum(_resident_bytes_on_host(costs, layer) for layer in plan.resident_layers)
        decoded = slots * max((costs.converted_bytes[layer] for layer in streamed), default=0)
        in_ram = hidden * workers if plan.hidden_store != "disk" else 0
        total = resident + buffers + decoded + passing + costs.scratch_bytes + in_ram + readouts
        total += max(working * workers, embedding)
        return PeakBytes(total, total)
    weights = sum(costs.weight_bytes[layer] for layer in plan.resident_layers)
    weights += slots * max((costs.weight_bytes[layer] for layer in streamed), default=0)
    raw = max((costs.buffer_bytes[n] for n in range(costs.num_layers) if costs.converted_bytes[n]), default=0)
    device = weights + raw + costs.scratch_bytes + max(working, embedding)
    host = buffers + passing + embedding + readouts
    if plan.hidden_store == "device":
        return PeakBytes(device + hidden, host)
    return PeakBytes(device, host + (hidden * workers if plan.hidden_store == "ram" else 0))


def hidden_bytes(plan: SweepChoice, costs: ModelCosts, work: Workload) -> int:
    """Hidden states of one worker's share of a group, all members together."""
    return lane_tokens(plan, work) * costs.hidden_size * costs.itemsize * work.num_members


def lane_tokens(plan: SweepChoice, work: Workload) -> int:
    """Tokens of one worker in one group."""
    return math.ceil(work.num_tokens / (plan.num_groups * len(plan.devices)))


def _resident_bytes_on_host(costs: ModelCosts, layer: int) -> int:
    """A layer that stays: decoded weights, and the whole reading buffer if some weight is a view of it."""
    has_views = costs.converted_bytes[layer] < costs.weight_bytes[layer]
    return costs.converted_bytes[layer] + (costs.buffer_bytes[layer] if has_views else 0)


def _working_bytes(plan: SweepChoice, costs: ModelCosts, work: Workload) -> int:
    """Activations, key spaces and attention scratch of one worker's micro-batch."""
    batch = min(plan.micro_batch_tokens, lane_tokens(plan, work))
    keys = work.longest_branch_tokens + batch
    scratch = _attention_scratch_bytes(plan, batch, costs, work)
    return batch * costs.activation_bytes_per_token + 3 * keys * costs.key_value_bytes_per_token + scratch


def _attention_scratch_bytes(plan: SweepChoice, batch_tokens: int, costs: ModelCosts, work: Workload) -> int:
    """What the attention backend needs for its largest tile: the rows it wants under the longest branch."""
    request = AttentionRequest(
        device_type=plan.devices[0].split(":")[0],
        has_softcap=costs.has_softcap,
        has_window=any(window is not None for window in costs.windows),
        dtype=plan.torch_dtype,
        head_dim=costs.head_dim,
    )
    backend = choose_backend(request)
    rows = min(backend.cut.max_rows or batch_tokens, batch_tokens)
    size = TileSize(
        rows=rows,
        keys=work.longest_branch_tokens + rows,
        num_heads=costs.num_heads,
        num_kv_heads=costs.num_kv_heads,
        head_dim=costs.head_dim,
        itemsize=costs.itemsize,
    )
    return backend.scratch_bytes(size, request)
