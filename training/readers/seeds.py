"""Where the random numbers of a step come from, so that a step repeats exactly. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SEED_RANGE = 2**62
CPU = torch.device("cpu")


def micro_batch_seed(seed: int, index: int) -> int:
    """The seed of one micro-batch of a step."""
    return (seed * 7_919 + index) % SEED_RANGE


def layer_seed(seed: int, layer: int) -> int:
    """The seed of one layer of one micro-batch."""
    return (seed * 1_000_003 + layer) % SEED_RANGE


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Torch's generators seeded inside the block, and as they were after it.

    Args:
        seed: below 2^64.
        device: whose generator is put back beside the CPU's.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
