"""The GEMM rate that GPUs keep up: all of them at once, for long enough to reach their power limit.

The best of a moment is no rate: a T4 begins at twice what its 70 W allow it to go on with. Knows no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from time import perf_counter

import torch

from strata.engine.machine.measure import GemmProduct

SUSTAINED_S = 15.0


def sustained_gemm_rate(
    devices: Sequence[torch.device], dtype: torch.dtype, width: int, seconds: float = SUSTAINED_S
) -> float:
    """FLOP/s of the slowest device while all multiply: the median of the second half of the time.

    Args:
        devices: that share a box, its cooling and its power.
        dtype: of the product; int8 sums in int32.
        width: of the model.
        seconds: how long.
    """
    products = [GemmProduct.of_width(device, dtype, width, 2 * width) for device in devices]
    with ThreadPoolExecutor(max_workers=len(products)) as pool:
        rates = list(pool.map(partial(_settled_rate, seconds=seconds), products))
    return min(rates)


def _settled_rate(product: GemmProduct, seconds: float) -> float:
    started, settled = perf_counter(), list[float]()
    while not settled or perf_counter() < started + seconds:
        rate = product.best_flop_per_s(0.0)
        if perf_counter() >= started + seconds / 2:
            settled.append(rate)
    return median(settled)
