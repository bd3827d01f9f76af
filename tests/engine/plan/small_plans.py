"""Owns costs, jobs and machines of any size to plan for: those of a tiny checkpoint, other sizes put in."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import torch

from strata.engine.machine.machine import Budgets, Machine
from strata.engine.machine.rates import MachineRates
from strata.engine.model.decoder import build_decoder
from strata.engine.model.weight_routes import route_layers
from strata.engine.plan.costs import ModelCosts, model_costs
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.plan.planner import plan_sweep
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.plan.workload import SideBytes, TokenStream, Workload, measure_workload
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint

MIB = 1 << 20
RATES = MachineRates(gemm_flop_per_s=1e11, disk_bytes_per_s=1e9, host_to_device_bytes_per_s=1e10)
AMPLE = Budgets(device_bytes=1 << 50, host_bytes=1 << 50)


def read_tiny_costs(checkpoint) -> ModelCosts:
    opened = open_checkpoint(checkpoint("llama-gqa"))
    decoder = build_decoder(opened.config, torch.float32)
    return model_costs(opened.config, route_layers(opened, decoder, torch.float32), torch.float32)


def costs_of(tiny: ModelCosts, num_layers: int, layer_mib: int, hidden_size: int) -> ModelCosts:
    same = (layer_mib * MIB,) * num_layers
    return replace(
        tiny,
        stored_bytes=same,
        buffer_bytes=same,
        weight_bytes=same,
        converted_bytes=(0,) * num_layers,
        decode_weights=({},) * num_layers,
        linear_weights=(layer_mib * MIB // 4,) * num_layers,
        windows=(None,) * num_layers,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_heads=hidden_size // 64,
        num_kv_heads=hidden_size // 64,
        head_dim=64,
    )


def work_of(costs: ModelCosts, num_tokens: int) -> Workload:
    position_ids = np.arange(1000, dtype=np.int32)
    stream = TokenStream(
        token_ids=position_ids % 700, position_ids=position_ids, scored=np.arange(0, 1000, 50)
    )
    row = 4 * costs.hidden_size
    side_bytes = SideBytes(norm=row, head=2 * row, embedding_row=row)
    thousand = measure_workload(costs, stream, side_bytes, num_members=1)
    times = num_tokens / 1000
    return replace(
        thousand,
        num_tokens=num_tokens,
        num_scored=num_tokens // 50,
        gemm_flops=times * thousand.gemm_flops,
        attention_flops=times * thousand.attention_flops,
    )


def make_plan(costs, work, budgets=AMPLE, devices=("cpu",), *, rates=RATES, **overrides) -> SweepPlan:
    machine = Machine(devices=devices, dtype=torch.float32, linear="dense", budgets=budgets, rates=rates)
    return plan_sweep(costs, work, machine, PlanOverrides(**overrides))


def named_gib(error: InputError) -> float:
    """The least that an error's message asks for."""
    found = re.search(r"expected at least ([\d.]+) GiB", str(error))
    assert found
    return float(found[1])
