"""The learning rate of every step. Knows no optimizer."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_factor(
    step: int, *, num_steps: int, num_warmup_steps: int, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """What the peak learning rate is multiplied with in a step.

    It rises in equal parts, 1/W in the first of W warm-up steps and 1 in the last, and then falls so that it
    would be 0 at step `num_steps`, the first that is not taken.

    Args:
        step: from zero.
        num_steps: of the whole run.
        num_warmup_steps: less than `num_steps`.
        schedule: cosine (Loshchilov and Hutter 2017, SGDR, equation 5, one period), linear or constant.

    Returns:
        A number in 0..1.
    """
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    share_done = (step - num_warmup_steps) / (num_steps - num_warmup_steps)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * share_done)) / 2
    return 1 - share_done if schedule == "linear" else 1.0
