"""`strata bench calibrate`: measures this machine and leaves a profile that `strata plan` and `score` use.

Compute is timed on whole decoder layers of TinyLlama's shape, of Llama 2 7B's on a card, through the
engine's worker, at two sizes of micro-batch and two lengths of prefix a dtype; disk, RAM and links with plain
reads and copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psutil
import torch

from strata.engine.machine.devices import resolve_dtype
from strata.engine.machine.measure import measure_gemm_rate
from strata.engine.machine.product_rates import product_rates
from strata.engine.machine.profile import (
    ComputeRates,
    MachineProfile,
    calibrated_path,
    describe_machine,
    save_profile,
)
from strata.engine.machine.rates import LayerRates, LinearKind
from strata.engine.machine.sustained import sustained_gemm_rate
from strata.engine.plan.shapes import LLAMA2_7B, LLAMA2_70B, TINY, TINYLLAMA_1B
from strata.kernels.prefix_attention.backend import AttentionRequest
from strata.kernels.prefix_attention.registry import choose_backend
from strata.scripts.bench.calibrate.decode_runs import measure_decode_rates
from strata.scripts.bench.calibrate.layer_fit import (
    LayerSample,
    LayerSizes,
    PartRates,
    fit_attention,
    fit_layer,
    predict_seconds,
)
from strata.scripts.bench.calibrate.layer_runs import LayerCase, TimedLayer, median_in_turns, prefix_attention
from strata.scripts.bench.calibrate.storage_runs import measure_copies, measure_disks, measure_interference
from strata.scripts.bench.configs import CalibrateConfig
from strata.scripts.bench.record import print_environment, print_table, run_identity
from strata.scripts.bench.steps import BenchSteps, keep_steps

CASES = {
    "cpu": (
        LayerCase(micro_batch_tokens=512, prefix_tokens=1200, num_questions=1),
        LayerCase(micro_batch_tokens=512, prefix_tokens=100, num_questions=4),
        LayerCase(micro_batch_tokens=128, prefix_tokens=1200, num_questions=1),
        LayerCase(micro_batch_tokens=128, prefix_tokens=100, num_questions=2),
    ),
    "cuda": (
        LayerCase(micro_batch_tokens=8192, prefix_tokens=1200, num_questions=24),
        LayerCase(micro_batch_tokens=8192, prefix_tokens=100, num_questions=80),
        LayerCase(micro_batch_tokens=4096, prefix_tokens=1200, num_questions=12),
        LayerCase(micro_batch_tokens=4096, prefix_tokens=100, num_questions=40),
    ),
}
SHAPES = {"cpu": TINYLLAMA_1B, "cuda": LLAMA2_7B}
"""What is timed: for a card so large that it computes for longer than the host launches."""
LINEAR_ROWS = {"cpu": 512, "cuda": 8192}
ATTENTION_KEYS = {"cpu": 1024, "cuda": 4096}
HEAD_DIMS = (64, 128)
BUSY_PERCENT = 20.0
LANE_ROUNDS = 7
OTHER_STEPS = ("disks", "copies", "decoding", "interference", "lanes")
"""What is measured beside the ways of computing."""


def run_calibration(config: CalibrateConfig) -> int:
    """Measures, prints, saves; an interrupted call is gone on with. Returns the exit status."""
    print_environment()
    busy = psutil.cpu_percent(interval=1.0)
    if busy > BUSY_PERCENT:
        print(f"warning: other programs use {busy:.0f}% of the processor; the rates will be too low")
    path = config.out or calibrated_path()
    ways = ways_of_computing()
    kept, asked = path.with_suffix(".partial.json"), run_identity({"folder": str(config.folder.resolve())})
    path.parent.mkdir(parents=True, exist_ok=True)
    with keep_steps("calibrate", kept, asked, total=len(ways) + len(OTHER_STEPS)) as steps:
        profile = measure_machine(config.folder, ways, steps)
        save_profile(profile, path)
    print_table(
        [
            {
                "computing in": name,
                "GEMM GFLOP/s": rates.gemm_flop_per_s / 1e9,
                "matrices GFLOP/s": rates.layer.linear_flop_per_s / 1e9,
                "attention GFLOP/s": rates.layer.attention_flop_per_s / 1e9,
                "softmax G/s": rates.layer.softmax_scores_per_s / 1e9,
                "elements G/s": rates.layer.elements_per_s / 1e9,
            }
            for name, rates in profile.compute.items()
        ]
    )
    print(f"disk {profile.disk_bytes_per_s / 1e6:,.0f} MB/s; saved in {path}")
    return 0


def calibrated_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def ways_of_computing() -> dict[str, tuple[torch.dtype, LinearKind]]:
    """What plans may compute in here, by name: dtype of activations and kind of linear layers.

    Without what float32 is faster than.
    """
    device = calibrated_device()
    floats = dict.fromkeys((torch.float32, fast_dtype(device)))
    ways: dict[str, tuple[torch.dtype, LinearKind]] = {
        str(dtype).removeprefix("torch."): (dtype, "dense") for dtype in floats
    }
    if device.type == "cuda" or product_rates().int8_is_fast:
        ways["int8"] = (fast_dtype(device), "int8")
    return ways


def measure_machine(
    folder: Path, ways: Mapping[str, tuple[torch.dtype, LinearKind]], steps: BenchSteps
) -> MachineProfile:
    """All rates of this machine, each a step.

    Args:
        folder: on the disk that counts.
        ways: dtype and kind of linear layers, by name.
        steps: what keeps them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = calibrated_device()
    on_cuda, activations = device.type == "cuda", fast_dtype(device)
    compute = {
        name: load_compute(steps.run(name, partial(measure_way, dtype, linear, device)))
        for name, (dtype, linear) in ways.items()
    }
    other = {
        "disks": lambda: measure_disks(folder),
        "copies": lambda: [measure_copies(torch.device("cpu")), measure_copies(device)],
        "decoding": lambda: measure_decode_rates(activations, device),
        "interference": lambda: 0.0 if on_cuda else measure_interference(folder, activations),
        "lanes": lambda: None if on_cuda else measure_two_lanes_gain(activations),
    }
    found: dict[str, Any] = {name: steps.run(name, other[name]) for name in OTHER_STEPS}
    host_memory = psutil.virtual_memory().total
    memory = torch.cuda.get_device_properties(device).total_memory if on_cuda else host_memory
    return MachineProfile(
        name="this machine",
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device_kind="cuda" if on_cuda else "cpu",
        num_devices=torch.cuda.device_count() if on_cuda else 1,
        device_memory_bytes=memory,
        host_memory_bytes=host_memory,
        machine=describe_machine(),
        compute=compute,
        int8_activations=str(activations).removeprefix("torch."),
        disk_bytes_per_s=found["disks"][0],
        store_bytes_per_s=found["disks"][1],
        host_bytes_per_s=found["copies"][0],
        host_to_device_bytes_per_s=found["copies"][1] if on_cuda else None,
        decode_weights_per_s=found["decoding"],
        read_interference=found["interference"],
        two_lanes_gain=found["lanes"],
        source={"all": "measured by strata bench calibrate"},
    )


def fast_dtype(device: torch.device) -> torch.dtype:
    """What a device computes a bfloat16 checkpoint in by its own choice."""
    return resolve_dtype("auto", torch.bfloat16, (str(device),))


def measure_way(dtype: torch.dtype, linear: LinearKind, device: torch.device) -> dict[str, Any]:
    """What `measure_compute` finds, as JSON."""
    return dump_compute(measure_compute(dtype, linear, device))


def dump_compute(rates: ComputeRates) -> dict[str, Any]:
    """As JSON, which has no infinity: parts that cost nothing are left out."""
    layer = {name: rate for name, rate in asdict(rates.layer).items() if rate != float("inf")}
    return {"gemm_flop_per_s": rates.gemm_flop_per_s, "layer": layer}


def load_compute(content: Mapping[str, Any]) -> ComputeRates:
    """What `dump_compute` made JSON of."""
    return ComputeRates(gemm_flop_per_s=content["gemm_flop_per_s"], layer=LayerRates(**content["layer"]))


def measure_compute(dtype: torch.dtype, linear: LinearKind, device: torch.device) -> ComputeRates:
    """The roofline of a way of computing, and what a layer reaches in it."""
    kind = torch.int8 if linear == "int8" else dtype
    layer = measure_layer(dtype, linear, device)
    if device.type == "cuda":
        devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        best = sustained_gemm_rate(devices, kind, LLAMA2_70B.hidden_size)
    else:
        best = measure_gemm_rate(device, kind, TINYLLAMA_1B.hidden_size, seconds=1.0)
    # A roofline measured in a busy moment is no roofline.
    return ComputeRates(gemm_flop_per_s=max(best, layer.linear_flop_per_s), layer=layer)


def measure_two_lanes_gain(dtype: torch.dtype) -> float | None:
    """Seconds of two lanes one after the other, each on all threads, over those of both at a time.

    None on a single thread, which has nothing to share.
    """
    if torch.get_num_threads() == 1:
        return None
    device = torch.device("cpu")
    layers = [TimedLayer(shape=TINYLLAMA_1B, dtype=dtype, linear="dense", device=device) for _ in range(2)]
    lanes = [torch.inference_mode()(layer.lane(CASES["cpu"][0]).run) for layer in layers]
    with ThreadPoolExecutor(len(lanes)) as pool:

        def seconds(num_together: int) -> float:
            started = perf_counter()
            for first in range(0, len(lanes), num_together):
                begun = [pool.submit(run) for run in lanes[first : first + num_together]]
                for lane in begun:
                    lane.result()
            return perf_counter() - started

        seconds(2)  # does not count
        gain = median(seconds(1) / seconds(2) for _ in range(LANE_ROUNDS))
    print(f"two lanes are {gain:.2f} times as fast as one")
    return gain


def measure_layer(dtype: torch.dtype, linear: LinearKind, device: torch.device) -> LayerRates:
    """Rates fitted to whole layers; prints how well they fit."""
    on_card = device.type == "cuda"
    layer = TimedLayer(shape=SHAPES[device.type], dtype=dtype, linear=linear, device=device)
    tiny = TimedLayer(shape=TINY, dtype=dtype, linear=linear, device=device)
    shape, kind = layer.shape, device.type
    backend = choose_backend(AttentionRequest(device_type=kind))
    matrices = layer.matrices(LINEAR_ROWS[kind])
    heads = [
        prefix_attention(replace(shape, head_dim=size), ATTENTION_KEYS[kind], dtype, device)
        for size in HEAD_DIMS
    ]
    call = tiny.lane(LayerCase(micro_batch_tokens=32, prefix_tokens=40, num_questions=4))
    lanes = [layer.lane(case) for case in CASES[kind]]
    matrices_s, short_s, long_s, call_s, *lanes_s = median_in_turns([matrices, *heads, call, *lanes], device)
    samples = [LayerSample(seconds=seconds, run=lane) for seconds, lane in zip(lanes_s, lanes, strict=True)]
    sizes = LayerSizes(
        width=shape.hidden_size + shape.intermediate_size,
        num_heads=shape.num_heads,
        head_dim=shape.head_dim,
        weight_bytes=layer.weight_bytes,
    )
    attention = fit_attention((short_s, long_s), heads[0].scores, HEAD_DIMS)
    alone = PartRates(
        linear_flop_per_s=matrices.gemm_flops / matrices_s,
        attention_flop_per_s=attention[0],
        softmax_scores_per_s=attention[1],
        masked_keys=(backend.cut.max_rows or 0) / 2 if kind == "cpu" else 0.0,
        call_s=call_s / call.calls,
        launches_ahead=on_card,
    )
    rates = fit_layer(samples, sizes, alone)
    errors = [
        predict_seconds(sample.run, rates, sizes, launches_ahead=on_card) / sample.seconds - 1
        for sample in samples
    ]
    print(f"{dtype}, {linear}: whole layers fitted to {', '.join(f'{error:+.1%}' for error in errors)}")
    return rates
