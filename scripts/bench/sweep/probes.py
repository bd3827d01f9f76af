"""Runs between two GEMM probes, for machines whose speed drifts.

A run counts as its share of the roofline, useful FLOPs / seconds / mean of the two probes; it is repeated
when its probes differ by more than a tenth. Ratios between runs are ratios of these shares.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from strata.engine.plan.shapes import ModelShape
from strata.engine.plan.sweep_plan import SweepPlan
from strata.scripts.bench.roofline import measure_gemm_rate
from strata.scripts.bench.workloads.flops import layer_gemm_shapes

PROBE_S = 0.3
MAX_DRIFT = 0.1
MAX_TRIES = 2


@dataclass(frozen=True, kw_only=True)
class ProbedRun:
    """Seconds a question of one run, the mean of the GEMM probes around it, and how far they differ."""

    seconds: float
    gemm_flop_per_s: float
    flops: int
    drift: float

    @property
    def roofline_share(self) -> float:
        """Useful FLOP/s over the GEMM rate."""
        return self.flops / self.seconds / self.gemm_flop_per_s


@dataclass(frozen=True, kw_only=True)
class Prober:
    """Measures GEMMs of a model's layers in one dtype on one device.

    Attributes:
        shape: the model.
        rows: tokens of a GEMM.
        num_lanes: that share the device: so many GEMMs run at a time, and their rates add up.
        flops: useful FLOPs of one question.
    """

    shape: ModelShape
    rows: int
    dtype: torch.dtype
    device: torch.device
    num_lanes: int
    flops: int

    def gemm_flop_per_s(self) -> float:
        """The GEMM roofline at this moment."""
        shapes = layer_gemm_shapes(self.shape, self.rows)
        measure = partial(measure_gemm_rate, self.dtype, self.device, shapes, seconds=PROBE_S)
        with ThreadPoolExecutor(self.num_lanes) as pool:
            lanes = [pool.submit(measure) for _ in range(self.num_lanes)]
            return sum(lane.result().best_flop_per_s for lane in lanes)

    def probe(self, run: Callable[[], float]) -> ProbedRun:
        """Seconds a question of a run, between two GEMM probes that agree (or the last of a few tries)."""
        before = self.gemm_flop_per_s()
        for _ in range(MAX_TRIES):
            seconds = run()
            after = self.gemm_flop_per_s()
            drift = abs(after - before) / max(after, before)
            found = ProbedRun(
                seconds=seconds, gemm_flop_per_s=(before + after) / 2, flops=self.flops, drift=drift
            )
            if drift <= MAX_DRIFT:
                break
            before = after
        return found


def make_prober(shape: ModelShape, plan: SweepPlan, flops: int) -> Prober:
    """GEMMs as a plan's micro-batches run them; `flops` are the useful ones of one question."""
    return Prober(
        shape=shape,
        rows=plan.micro_batch_tokens,
        dtype=plan.torch_dtype,
        device=torch.device(plan.devices[0]),
        num_lanes=plan.devices.count("cpu") or 1,
        flops=flops,
    )
