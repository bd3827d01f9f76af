"""The GEMM rate beside a sweep: sampled between its micro-batches and after it, on the threads that swept.

A machine's speed changes with what else runs on it and how hot it is, so a share of what it reached at some
other time says little. What counts is the mean over all samples: other programs take their share of these as
they do of the sweep. Knows no sweep: it is told when it may sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import torch

from strata.engine.machine.machine import Machine
from strata.engine.machine.measure import GemmProduct

BESIDE = "measured beside the sweep"
"""How the source of such a roofline begins."""
LARGEST_SHARE = 0.01
"""Of the sweep's time that samples between micro-batches may take."""
SAMPLE_S = 0.03
FINAL_S = (0.02, 0.3)
"""Least and most of the sample after the sweep, which is LARGEST_SHARE of it where that lies between."""
WIDTHS = (512, 2048)
"""Narrower products would measure the cost of a call; wider ones are no faster and take more memory."""


@dataclass(frozen=True, kw_only=True)
class SeenRoofline:
    """What was sampled: FLOP/s of all devices together, how often, and the seconds that it took."""

    flop_per_s: float
    num_samples: int
    between_s: float

    @property
    def source(self) -> str:
        """In words."""
        return f"{BESIDE}, {self.num_samples} time{'s' if self.num_samples > 1 else ''}"


@dataclass(kw_only=True, eq=False)
class RooflineProbe:
    """Samples the GEMM rate of a job's first device, in what its linear layers compute in.

    Attributes:
        device: where.
        dtype: int8 for int8 linears.
        width: of the model.
        num_workers: that share the device; samples between micro-batches are taken with one alone.
        num_devices: that work at the same rate.
    """

    device: torch.device
    dtype: torch.dtype
    width: int
    num_workers: int
    num_devices: int
    num_samples: int = 0
    sampled_flops: float = 0.0
    sampled_s: float = 0.0
    between_s: float = 0.0
    _longest_s: float = SAMPLE_S
    _started: float = field(default_factory=perf_counter)

    @classmethod
    def of(cls, machine: Machine, width: int) -> RooflineProbe:
        """For a job on a machine, whose sweep begins now."""
        names = machine.devices
        return cls(
            device=torch.device(names[0]),
            dtype=torch.int8 if machine.linear == "int8" else machine.dtype,
            width=min(max(width, WIDTHS[0]), WIDTHS[1]),
            num_workers=names.count(names[0]),
            num_devices=len(set(names)),
        )

    def beside(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        """The function, which also samples now and then; for the thread that computes."""
        if self.device.type != "cpu" or self.num_workers > 1:
            return advance

        def sampling(count: int) -> None:
            advance(count)
            self.sample_between()

        return sampling

    def sample_between(self) -> None:
        """Samples, if that stays a small share of the time since the start."""
        started = perf_counter()
        if self.between_s + self._longest_s > LARGEST_SHARE * (started - self._started):
            return
        self._sample(SAMPLE_S)
        seconds = perf_counter() - started
        self.between_s += seconds
        self._longest_s = max(self._longest_s, seconds)

    def sample_after(self) -> None:
        """Samples once more: every sweep has a roofline of its own."""
        least, most = FINAL_S
        self._sample(min(max(least, LARGEST_SHARE * (perf_counter() - self._started)), most))

    @property
    def seen(self) -> SeenRoofline | None:
        """All samples together; None before the first."""
        if not self.num_samples:
            return None
        return SeenRoofline(
            flop_per_s=self.sampled_flops / self.sampled_s * self.num_devices,
            num_samples=self.num_samples,
            between_s=self.between_s,
        )

    def _sample(self, seconds: float) -> None:
        # Made anew each time: a sweep near its budget has no memory to spare for long.
        product = GemmProduct.of_width(self.device, self.dtype, self.width, self.width)
        calls = product.call_seconds(seconds)
        self.num_samples += 1
        self.sampled_flops += len(calls) * product.flops
        self.sampled_s += sum(calls)


def join_seen(parts: list[tuple[float, SeenRoofline | None]]) -> SeenRoofline | None:
    """The roofline of several sweeps, one after the other; None where one of them has none.

    Args:
        parts: FLOPs of each, and its roofline.

    Returns:
        The rate at which all would take as long as each at its own.
    """
    seen = [one for _, one in parts if one is not None]
    seconds = sum(flops / one.flop_per_s for flops, one in parts if one is not None)
    if len(seen) < len(parts) or not seconds:
        return None
    return SeenRoofline(
        flop_per_s=sum(flops for flops, _ in parts) / seconds,
        num_samples=sum(one.num_samples for one in seen),
        between_s=sum(one.between_s for one in seen),
    )
