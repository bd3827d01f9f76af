"""The planner's decision: a choice of how to sweep, and the same with what it is expected to cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strata.engine.machine.devices import DTYPES
from strata.engine.machine.rates import MEASURED_QUICKLY, LinearKind
from strata.engine.plan.overrides import StoreKind


@dataclass(frozen=True, kw_only=True)
class SweepChoice:
    """How a job is swept.

    `dtype` is that of activations and dense weights; `linear` says whether linear layers compute in it or in
    int8. `num_slots` streamed layers are in memory at once: the one being computed and the next.
    """

    devices: tuple[str, ...]
    dtype: str
    linear: LinearKind = "dense"
    num_groups: int
    micro_batch_tokens: int
    resident_layers: tuple[int, ...]
    num_slots: int
    hidden_store: StoreKind

    @property
    def torch_dtype(self) -> torch.dtype:
        """The compute dtype."""
        return DTYPES[self.dtype]

    @property
    def on_cpu(self) -> bool:
        """Whether the workers compute on the CPU, and so share one memory."""
        return self.devices[0] == "cpu"


@dataclass(frozen=True, kw_only=True)
class SweepPlan(SweepChoice):
    """A choice, and what it is expected to cost.

    `bytes_read` is exact in a SweepJob, which knows the lanes; `memory_bytes` is what each device is expected
    to hold at its peak (weights, activations, hidden states that wait on it), `host_bytes` the same of host
    RAM. `compute_s`, `read_s`, `decode_s`, `copy_s`, `store_s` are busy seconds of one worker's resources,
    `stall_s` those in which it waits for weights.
    """

    tokens: int
    flops: float
    bytes_read: int
    memory_bytes: int
    host_bytes: int
    predicted_s: float
    compute_s: float
    read_s: float
    bottleneck: str
    decode_s: float = 0.0
    copy_s: float = 0.0
    store_s: float = 0.0
    stall_s: float = 0.0
    rates_from: str = MEASURED_QUICKLY


def readout_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """What readouts are kept in: the compute dtype, but float32 for float16, which they may overflow."""
    return torch.float32 if compute_dtype is torch.float16 else compute_dtype
