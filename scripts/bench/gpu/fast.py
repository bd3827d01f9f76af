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

import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from strata.engine.machine.profile import save_profile
from strata.engine.machine.rates import LinearKind
from strata.engine.machine.sustained import SUSTAINED_S, sustained_gemm_rate
from strata.engine.plan.shapes import LLAMA2_70B, TINY, ModelShape
from strata.engine.types import as_one_line
from strata.kernels.int8_linear.choice import over_dense
from strata.scripts.bench.calibrate.calibrate import measure_machine, ways_of_computing
from strata.scripts.bench.calibrate.layer_runs import LayerCase, TimedLayer, prefix_attention
from strata.scripts.bench.calibrate.storage_runs import measure_copies
from strata.scripts.bench.gpu.config import GpuBenchConfig
from strata.scripts.bench.gpu.int8_cases import best_of_codes, int8_rates
from strata.scripts.bench.gpu.peaks import share_of_peak
from strata.scripts.bench.gpu.stages import AcceptanceStage, Figures
from strata.scripts.bench.gpu.sweeps import (
    CARD,
    NUM_LAYERS,
    NUM_QUESTIONS,
    QUESTION,
    card_dtype,
    time_capped,
    time_resident,
    time_sweep,
)
from strata.scripts.bench.steps import BenchSteps
from strata.scripts.bench.timing import MIN_REPEATS, Stopwatch
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.synthetic_job import make_job, plan_synthetic, run_synthetic

NUM_KERNELS_TOLD = 12
TORCHS_ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def measure_ceilings(config: GpuBenchConfig) -> Figures:
    """What the cards keep up, all at once, and the links to them."""
    dtype, shape = card_dtype(), _shape(config)
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
    """A 70B's products in int8 by each kernel, over dense ones and the card's peak; plans go by them then."""
    card = torch.cuda.get_device_name(CARD)
    found = int8_rates(_shape(config), card_dtype(), CARD, keeps=not config.tiny)
    return {
        product: {
            "op_per_s": rates,
            "over_dense": over_dense(rates),
            "share_of_peak": share_of_peak(best_of_codes(rates), card, torch.int8),
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
    layer = TimedLayer(shape=_shape(config), dtype=card_dtype(), linear=linear, device=CARD)
    lane = layer.lane(case)
    with torch.inference_mode():
        with Stopwatch(CARD) as first:
            lane.run()
        seconds = _median_seconds(lane.run, 0.0 if config.tiny else 10.0)
        kernels = {} if config.tiny else _kernels(lane.run)
    rate = lane.gemm_flops / seconds
    return {
        "first_s": first.seconds,
        "seconds": seconds,
        "tokens": lane.tokens,
        "micro_batches": lane.calls,
        "gemm_flop_per_s": rate,
        "mfu": share_of_peak(rate, torch.cuda.get_device_name(CARD), card_dtype()),
        "fused": sorted(layer.decoder.fused),
        "why_not_fused": layer.decoder.unfused_because,
        **kernels,
    }


def time_attention(config: GpuBenchConfig) -> Figures:
    """Prefix attention beside torch's own kernels on the same causal square, which know no prefixes."""
    shape, dtype, keys = _shape(config), card_dtype(), 64 if config.tiny else 4096
    ours = prefix_attention(shape, keys, dtype, CARD)
    size = (1, shape.num_heads, keys, shape.head_dim)
    query, key, value = (torch.randn(size, device=CARD).to(dtype) for _ in range(3))
    flops, seconds = 4 * shape.head_dim * ours.scores, 0.0 if config.tiny else 2.0
    rates: dict[str, float | str] = {}
    with torch.inference_mode():
        ours_s = _median_seconds(ours.run, seconds)
        for name, backend in TORCHS_ATTENTION.items():
            try:
                with sdpa_kernel(backend):
                    theirs_s = _median_seconds(
                        lambda: scaled_dot_product_attention(query, key, value, is_causal=True), seconds
                    )
                rates[name] = flops / theirs_s
            except RuntimeError as error:  # this card or this build has it not
                rates[name] = as_one_line(str(error))
    return {
        "keys": keys,
        "flop_per_s": flops / ours_s,
        "torchs_flop_per_s": rates,
        "over": {name: flops / ours_s / rate for name, rate in rates.items() if isinstance(rate, float)},
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
    job = make_job(shape, NUM_QUESTIONS, QUESTION)
    settings: dict[str, Any] = {"devices": "cuda:0", "num_groups": 1, "resident_layers": 0}
    run = plan_synthetic(job, checkpoint, config.folder, profile=str(path), **settings)
    measured_s = run_synthetic(run, cold=True).sweep_s
    return {"predicted_s": run.plan.predicted_s, "measured_s": measured_s, "profile": path.name}


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
    rows = [one for one in seen.key_averages() if one.device_type == DeviceType.CUDA]
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
    AcceptanceStage(name="resident", run=time_resident, limit_s=40, ends_all=False),
    AcceptanceStage(name="capped", run=time_capped, limit_s=60, ends_all=False),
    AcceptanceStage(name="calibration", run=calibrate, limit_s=150, ends_all=False),
)
