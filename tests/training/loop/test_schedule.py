"""The learning rate of every step, against numbers computed by hand."""

from __future__ import annotations

import pytest

from strata.training.loop.schedule import learning_rate_factor


def factors(schedule: str, num_steps: int, num_warmup_steps: int) -> list[float]:
    return [
        learning_rate_factor(step, num_steps=num_steps, num_warmup_steps=num_warmup_steps, schedule=schedule)
        for step in range(num_steps)
    ]


def test_learning_rates():
    assert factors("constant", 4, 2) == [0.5, 1.0, 1.0, 1.0]
    assert factors("linear", 6, 2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert factors("cosine", 5, 1) == pytest.approx([1.0, 1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])
    assert factors("cosine", 1, 0) == [1.0]
