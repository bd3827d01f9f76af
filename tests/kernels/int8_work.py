"""Random operands of the W8A8 linear, and memory that shows what is never written. Knows no tolerance."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

FLOAT32_EPS = 2.0**-23
INFINITY = float("inf")
SHAPES = ((1, 16, 8), (3, 33, 5), (17, 40, 24), (129, 100, 61), (16, 1, 1), (2, 257, 1), (0, 16, 8))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin return NaN, or the largest integer: what is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def random_operands(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x [T, K] with some outlier columns, weight [N, K], bias [N]; a zero row and column where they fit."""
    num_tokens, num_inputs, num_outputs = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x, weight, bias = (
        torch.randn(size, generator=generator)
        for size in ((num_tokens, num_inputs), (num_outputs, num_inputs), (num_outputs,))
    )
    x[:, num_inputs // 2 : num_inputs // 2 + num_inputs // 20] *= 20
    if num_inputs > 1:
        x[:, 1] = weight[:, 0] = 0
        x[2:3] = weight[3:4] = 0
    return x.to(dtype), weight.to(dtype), bias.to(dtype)
