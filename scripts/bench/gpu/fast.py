"""Where a card's time goes: what it reaches at best, one layer of a 70B, a sweep from disk, a calibration.

Rates are those that all cards keep up at once, a layer's share of them is its MFU. No time is told of a card
without the bytes or FLOPs that it was spent on.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from strata.engine.machine.devices import resolve_dtype
from strata.engine.machine.profile import save_profile
from strata.engine.machine.rates import LinearKind
from strata.engine.machine.sustained import SUSTAINED_S, sustained_gemm_rate
from strata.engine.plan.shapes import LLAMA2_70B, TINY, ModelShape
from strata.scripts.bench.calibrate.calibrate import measure_machine, ways_of_computing
from strata.scripts.bench.calibrate.layer_runs import LayerCase, TimedLayer, prefix_attention
from strata.scripts.bench.calibrate.storage_runs import measure_copies
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.gpu.config import GpuBenchConfig
from strata.scripts.bench.gpu.int8_cases import int8_rates, over_float, share_of_peak
from strata.scripts.bench.gpu.stages import AcceptanceStage, Figures
from strata.scripts.bench.steps import BenchSteps
from strata.scripts.bench.timing import MIN_REPEATS, Stopwatch
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.synthetic_job import (
    SyntheticRun,
    checkpoint_bytes,
    make_job,
    plan_synthetic,
    run_synthetic,
)

CARD = torch.device("cuda:0")
NUM_LAYERS = 4
"""Of the checkpoint that is streamed: 6.8 GiB of a 70B's layers."""
QUESTION = QuestionSize(prefix_tokens=1275, option_tokens=45, num_options=5)
TINY_QUESTION = QuestionSize(prefix_tokens=40, option_tokens=6, num_options=2)
NUM_KERNELS_TOLD = 12


def measure_ceilings(config: GpuBenchConfig) -> Figures:
    """What the cards keep up, all at once, and the links to them."""
    dtype, shape = _dtype(), _shape(config)
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    seconds = 0.1 if config.tiny else SUSTAINED_S
    found: Figures = {
        "dtype": str(dtype),
        "num_devices": len(devices),
        "gemm_flop_per_s": sustained_gemm_rate(devices, dtype, shape.hidden_size, seconds),
        "clocks": _clocks(),
        "int8_op_per_s": sustained_gemm_rate(devices, torch.int8, shape.hidden_size, seconds / 3),
    }
    if not config.tiny:
        found["host_to_device_bytes_per_s"] = measure_copies(CARD)
    return found


def measure_int8(config: GpuBenchConfig) -> Figures:
    """A 70B's products in int8 by each kernel, over floats and of the card's peak; plans go by them then."""
    card = torch.cuda.get_device_name(CARD)
    found = int8_rates(_shape(config), _dtype(), CARD, keeps=not config.tiny)
    return {
        product: {
            "op_per_s": rates,
            "int8_over_float": over_float(rates),
            "share_of_peak": share_of_peak(rates, card),
        }
        for product, rates in found.items()
    }


def time_layer(config: GpuBenchConfig) -> Figures:
    """A layer over questions of 1,500 tokens, dense and in int8: seconds, rate, which kernels take most."""
    case = LayerCase(micro_batch_tokens=8192, prefix_tokens=1275, num_questions=12)
    if config.tiny:
        case = LayerCase(micro_batch_tokens=64, prefix_tokens=40, num_questions=2)
    kinds: tuple[LinearKind, ...] = ("dense", "int8")
    return {kind: _time_layer(config, kind, case) for kind in kinds}


def _time_layer(config: GpuBenchConfig, linear: LinearKind, case: LayerCase) -> Figures:
    layer = TimedLayer(shape=_shape(config), dtype=_dtype(), linear=linear, device=CARD)
    lane = layer.lane(case)
    with torch.inference_mode():
        with Stopwatch(CARD) as first:
            lane.run()
        seconds = _median_seconds(lane.run, 0.0 if config.tiny else 10.0)
        kernels = {} if config.tiny else _kernels(lane.run)
    return {
        "first_s": first.seconds,
        "seconds": seconds,
        "tokens": lane.tokens,
        "micro_batches": lane.calls,
        "gemm_flop_per_s": lane.gemm_flops / seconds,
        **kernels,
    }


def time_attention(config: GpuBenchConfig) -> Figures:
    """Prefix attention beside torch's own kernel on the same causal square, which knows no prefixes."""
    shape, dtype, keys = _shape(config), _dtype(), 64 if config.tiny else 4096
    ours = prefix_attention(shape, keys, dtype, CARD)
    size = (1, shape.num_heads, keys, shape.head_dim)
    query, key, value = (torch.randn(size, device=CARD).to(dtype) for _ in range(3))
    seconds = 0.0 if config.tiny else 2.0
    with torch.inference_mode():
        ours_s = _median_seconds(ours.run, seconds)
        theirs_s = _median_seconds(
            lambda: scaled_dot_product_attention(query, key, value, is_causal=True), seconds
        )
    flop_per_s = 4 * shape.head_dim * ours.scores / ours_s
    return {"flop_per_s": flop_per_s, "over_torch": theirs_s / ours_s, "keys": keys}


def time_sweep(config: GpuBenchConfig) -> Figures:
    """Some layers of a 70B from disk, streamed and resident: same bits, time, waits, memory by the plan."""
    shape = _shape(config, 3 if config.tiny else NUM_LAYERS)
    checkpoint = make_random_checkpoint(shape, config.folder / f"{shape.name}-{shape.num_layers}")
    job = make_job(shape, 4 if config.tiny else 48, TINY_QUESTION if config.tiny else QUESTION)
    common: dict[str, Any] = {"devices": "cuda:0", "num_groups": 1}
    streamed = plan_synthetic(job, checkpoint, config.folder, resident_layers=0, **common)
    resident = plan_synthetic(job, checkpoint, config.folder, resident_layers=shape.num_layers, **common)
    found = {"streamed": _run_sweep(streamed), "resident": _run_sweep(resident)}
    scores = [figures.pop("scores") for figures in found.values()]
    is_same = bool(np.array_equal(*scores))
    # The matrices of the roofline that is measured beside a sweep outweigh a tiny model.
    is_as_planned = config.tiny or all(one["device_over_plan"] <= 1 for one in found.values())
    return {
        "ok": is_same and is_as_planned,
        "same_bits": is_same,
        "checkpoint_bytes": checkpoint_bytes(checkpoint),
        **found,
    }


def _run_sweep(run: SyntheticRun) -> Figures:
    torch.cuda.reset_peak_memory_stats(CARD)
    done = run_synthetic(run, cold=True)
    peak = torch.cuda.max_memory_allocated(CARD)
    return {
        "seconds": done.seconds,
        "sweep_s": done.sweep_s,
        "weights_wait_s": done.weight_stream.weights_wait_s,
        "flop_per_s": run.job.flops * len(run.job.questions) / done.sweep_s,
        "peak_device_bytes": peak,
        "device_over_plan": peak / run.plan.memory_bytes,
        "predicted_s": run.plan.predicted_s,
        "scores": done.scores,
    }


def calibrate(config: GpuBenchConfig) -> Figures:
    """A profile of this machine, kept beside the results, and what it predicts for the sweep above."""
    if config.tiny:
        return {"why": "a dry run"}
    profile = measure_machine(config.folder, ways_of_computing(), BenchSteps())
    path = config.folder / "profile.json"
    save_profile(profile, path)
    shape = _shape(config, NUM_LAYERS)
    checkpoint = make_random_checkpoint(shape, config.folder / f"{shape.name}-{shape.num_layers}")
    job = make_job(shape, 48, QUESTION)
    settings: dict[str, Any] = {"devices": "cuda:0", "num_groups": 1, "resident_layers": 0}
    run = plan_synthetic(job, checkpoint, config.folder, profile=str(path), **settings)
    measured_s = run_synthetic(run, cold=True).sweep_s
    return {"predicted_s": run.plan.predicted_s, "measured_s": measured_s, "profile": path.name}


def _dtype() -> torch.dtype:
    return resolve_dtype("auto", torch.bfloat16, (str(CARD),))


def _shape(config: GpuBenchConfig, num_layers: int = 1) -> ModelShape:
    return replace(TINY if config.tiny else LLAMA2_70B, num_layers=num_layers)


def _median_seconds(run: Callable[[], object], at_least_s: float) -> float:
    """Of the second half of the calls: a card slows down as it gets hot."""
    run()
    seconds: list[float] = []
    while len(seconds) < MIN_REPEATS or sum(seconds) < at_least_s:
        with Stopwatch(CARD) as watch:
            run()
        seconds.append(watch.seconds)
    return median(seconds[len(seconds) // 2 :])


def _kernels(run: Callable[[], object]) -> Figures:
    """What runs on the card in one call, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with Stopwatch(CARD) as watch, profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize(CARD)
    rows = [one for one in seen.key_averages() if one.self_device_time_total]
    rows.sort(key=lambda one: -one.self_device_time_total)
    busy_s = sum(one.self_device_time_total for one in rows) / 1e6
    return {
        "busy_s": busy_s,
        "profiled_s": watch.seconds,
        "num_kernels": sum(one.count for one in rows),
        "kernels": [
            {"name": one.key[:80], "count": one.count, "seconds": one.self_device_time_total / 1e6}
            for one in rows[:NUM_KERNELS_TOLD]
        ],
    }


def _clocks() -> str | None:
    """Clock, power and temperature of the cards right after load; None without nvidia-smi."""
    query = "--query-gpu=clocks.sm,power.draw,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "; ".join(done.stdout.strip().splitlines())


FAST = (
    AcceptanceStage(name="ceilings", run=measure_ceilings, limit_s=45, ends_all=False),
    AcceptanceStage(name="int8", run=measure_int8, limit_s=30, ends_all=False),
    AcceptanceStage(name="layer", run=time_layer, limit_s=90, ends_all=False),
    AcceptanceStage(name="attention", run=time_attention, limit_s=20, ends_all=False),
    AcceptanceStage(name="sweep", run=time_sweep, limit_s=180, ends_all=False),
    AcceptanceStage(name="calibration", run=calibrate, limit_s=150, ends_all=False),
)
