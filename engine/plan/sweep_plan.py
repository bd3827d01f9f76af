"""The planner's words: the size of a job, what is allowed, what the user fixes, and the decision itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from strata.engine.config import ScoreConfig
from strata.engine.machine.devices import DTYPES
from strata.engine.machine.rates import MEASURED_QUICKLY, LinearKind
from strata.engine.types import InputError


@dataclass(frozen=True, kw_only=True)
class PlanOverrides:
    """What the user fixes; None leaves the choice to the planner."""

    micro_batch_tokens: int | None = None
    num_groups: int | None = None
    resident_layers: int | None = None
    hidden_store: StoreKind | None = None

    def __post_init__(self) -> None:
        for name, least in (("micro_batch_tokens", 1), ("num_groups", 1), ("resident_layers", 0)):
            setting = getattr(self, name)
            if setting is not None and setting < least:
                raise InputError(
                    f"--{name.replace('_', '-')}: {setting} is too small; expected at least {least}"
                )


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The decision, and what it is expected to cost.

    `dtype` is that of activations and dense weights; `linear` says whether linear layers compute in it or in
    int8. `bytes_read` is exact once `settle_bytes` has seen the lanes; `memory_bytes` is what each device is
    expected to hold at its peak (weights, activations, hidden states that wait on it), `host_bytes` the same
    of host RAM. `compute_s`, `read_s`, `decode_s`, `copy_s`, `store_s` are busy seconds of one worker's
    resources, `stall_s` those in which it waits for weights.
    """

    devices: tuple[str, ...]
    dtype: str
    linear: LinearKind = "dense"
    num_groups: int
    micro_batch_tokens: int
    resident_layers: tuple[int, ...]
    num_slots: int
    hidden_store: StoreKind
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

    @property
    def torch_dtype(self) -> torch.dtype:
        """The compute dtype."""
        return DTYPES[self.dtype]


def readout_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """What readouts are kept in: the compute dtype, but float32 for float16, which they may overflow."""
    return torch.float32 if compute_dtype is torch.float16 else compute_dtype


StoreKind = Literal["device", "ram", "disk"]


def overrides_of(config: ScoreConfig) -> PlanOverrides:
    """What the flags fix."""
    return PlanOverrides(
        micro_batch_tokens=config.micro_batch_tokens,
        num_groups=config.num_groups,
        resident_layers=config.resident_layers,
        hidden_store=config.hidden_store,
    )
