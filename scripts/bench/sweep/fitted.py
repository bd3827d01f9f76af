"""How much of the sweep bench a machine can do in the time that it may take: layers, questions, rounds.

What is measured are shares of a roofline, which depend on a layer's shape and hardly on how many layers there
are: so a slow machine sweeps fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from strata.engine.machine.devices import resolve_dtype
from strata.engine.machine.measure import measure_gemm_rate
from strata.engine.plan.shapes import SHAPES, ModelShape
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.sweep.core import bench_device, bench_shape
from strata.scripts.bench.sweep.formats import FORMATS
from strata.scripts.bench.sweep.peers import SIZE
from strata.scripts.bench.workloads.flops import useful_flops

USUAL_SHARE = 0.6
"""Of the GEMM rate, over everything that the bench does."""
LOOP_COSTS = 2.0
"""Time of Hugging Face loops over that of their FLOPs at the usual share."""
FEWEST_QUESTIONS = 4
FEWEST_LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class FittedBench:
    """Settings that end in time, and what to say of them; empty where all is measured."""

    config: SweepBenchConfig
    notice: str


def fit_bench(config: SweepBenchConfig, flop_per_s: float | None = None) -> FittedBench:
    """The bench as it is asked for, or as much of it as ends in `minutes`.

    Args:
        config: what is asked for.
        flop_per_s: the GEMM rate of the device; None measures it.
    """
    rate = flop_per_s or measure_device(config)
    allowed = config.minutes * 60 * rate * USUAL_SHARE
    smaller = list(_smaller(config))
    fitting = (one for one in smaller if bench_flops(one) <= allowed)
    chosen = next(fitting, smaller[-1])
    if chosen == smaller[0]:
        return FittedBench(config=chosen, notice="")
    lasts = bench_flops(chosen) / (rate * USUAL_SHARE) / 60
    in_time = f"to end in about {config.minutes:g} minutes (--minutes)"
    ends = in_time if lasts <= config.minutes else f"the least there is: about {lasts:.0f} minutes"
    notice = (
        f"GEMMs reach {rate / 1e9:,.0f} GFLOP/s: {chosen.num_layers} of {SHAPES[config.shape].num_layers} "
        f"layers, {chosen.num_questions} questions and {chosen.rounds} round(s), {ends}"
    )
    return FittedBench(config=chosen, notice=notice)


def measure_device(config: SweepBenchConfig) -> float:
    """FLOP/s of the bench's device in what it computes bfloat16 checkpoints in."""
    name = bench_device(config)
    dtype = resolve_dtype("auto", torch.bfloat16, (name,))
    return measure_gemm_rate(torch.device(name), dtype, SHAPES[config.shape].hidden_size, seconds=0.5)


def _smaller(config: SweepBenchConfig) -> Iterator[SweepBenchConfig]:
    """The settings with all layers, then with less and less: rounds first, questions, then layers."""
    num_layers = bench_shape(config).num_layers
    whole = replace(config, num_layers=num_layers)
    yield whole
    fewer = replace(whole, rounds=1, num_dynamic_questions=1, num_naive_questions=1)
    yield fewer
    questions = min(config.num_questions, FEWEST_QUESTIONS)
    fewer = replace(fewer, num_questions=questions, peer_questions=min(config.peer_questions, 2 * questions))
    for layers in range(num_layers, FEWEST_LAYERS - 1, -1):
        yield replace(fewer, num_layers=layers)


def bench_flops(config: SweepBenchConfig) -> float:
    """Useful FLOPs of the chosen parts; what loops of others compute counts as long as it takes."""
    shape, parts = bench_shape(config), config.parts or ("core", "formats", "throttle", "peers")
    question = _question_flops(config, shape)
    job = config.num_questions * question
    naive = config.num_naive_questions * config.num_options * question
    dynamic = config.rounds * config.num_dynamic_questions * question
    few = replace(shape, num_layers=min(config.format_layers, shape.num_layers))
    a_format = config.format_rounds * 2 * config.num_questions * _question_flops(config, few)
    asked = useful_flops(shape, SIZE, scored_tokens=SIZE.num_options)
    costs = {
        "core": job * (1 + 4 * config.rounds) + LOOP_COSTS * (dynamic + naive),
        "formats": len(FORMATS) * a_format,
        # Without a limit, at three rates of which one takes twice as long, and twice through a cache.
        "throttle": 9 * job,
        # In two dtypes, before the peers and after them.
        "peers": 4 * config.peer_questions * asked,
    }
    return sum(costs.get(part, 0.0) for part in parts)


def _question_flops(config: SweepBenchConfig, shape: ModelShape) -> float:
    return useful_flops(shape, config.question_size, scored_tokens=config.num_options)
