"""The GEMM rate beside a sweep: sampled between its micro-batches and after it, on the threads that swept.

A machine's speed changes with what else runs on it and how hot it is, so a share of what it reached at some
other time says little. What counts is the mean over all samples: other programs take their share of these as
they do of the sweep. Lanes that share a CPU each sample their part of it, which add up.
Knows no sweep: it is told when it may sample.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """What was sampled: FLOP/s of all devices together, how often, and the seconds that the sweep lost."""

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
        num_workers: that share the device, a lane each.
        num_devices: that work at the same rate.
        sampled_flops: of all samples, each by one worker.
        sampled_s: in which they were computed.
        between_s: that samples between micro-batches took, of one worker at a time.
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
    _is_sampling: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, machine: Machine, width: int, devices: Sequence[str] | None = None) -> RooflineProbe:
        """For a job on a machine, whose sweep begins now.

        Args:
            machine: tells in what it computes.
            width: of the model.
            devices: one a worker; the machine's by default.
        """
        names = machine.devices if devices is None else tuple(devices)
        return cls(
            device=torch.device(names[0]),
            dtype=torch.int8 if machine.linear == "int8" else machine.dtype,
            width=min(max(width, WIDTHS[0]), WIDTHS[1]),
            num_workers=names.count(names[0]),
            num_devices=len(set(names)),
        )

    def beside(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        """The function, which also samples now and then; for the threads that compute."""
        if self.device.type != "cpu":
            return advance

        def sampling(count: int) -> None:
            advance(count)
            self.sample_between()

        return sampling

    def sample_between(self) -> None:
        """Samples, if that stays a small share of the time since the start, and no other lane does."""
        if not self._is_sampling.acquire(blocking=False):
            return
        try:
            started = perf_counter()
            if self.between_s + self._longest_s > LARGEST_SHARE * (started - self._started):
                return
            self._sample(SAMPLE_S, 1)
            seconds = perf_counter() - started
            self.between_s += seconds
            self._longest_s = max(self._longest_s, seconds)
        finally:
            self._is_sampling.release()

    def sample_after(self) -> None:
        """Samples once more, as many products at a time as there were lanes: each sweep has its roofline."""
        least, most = FINAL_S
        seconds = min(max(least, LARGEST_SHARE * (perf_counter() - self._started)), most)
        self._sample(seconds, self.num_workers)

    @property
    def seen(self) -> SeenRoofline | None:
        """All samples together; None before the first."""
        if not self.num_samples:
            return None
        return SeenRoofline(
            flop_per_s=self.sampled_flops / self.sampled_s * self.num_workers * self.num_devices,
            num_samples=self.num_samples,
            between_s=self.between_s / self.num_workers,
        )

    def _sample(self, seconds: float, num_products: int) -> None:
        """Times a product for some seconds, or several at a time."""
        # Made anew each time: a sweep near its budget has no memory to spare for long.
        products = [
            GemmProduct.of_width(self.device, self.dtype, self.width, self.width) for _ in range(num_products)
        ]
        if num_products == 1:
            found = [products[0].call_seconds(seconds)]  # on the thread that asks, which has its own team
        else:
            with ThreadPoolExecutor(num_products, "roofline") as pool:
                found = list(pool.map(lambda product: product.call_seconds(seconds), products))
        self.num_samples += 1
        self.sampled_flops += sum(map(len, found)) * products[0].flops
        self.sampled_s += sum(map(sum, found))


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
