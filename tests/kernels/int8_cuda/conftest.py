"""The kernels, compiled for the CPU once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from .emulated import COMPILER, EmulatedKernels

Emulate = Callable[..., EmulatedKernels]


@pytest.fixture(scope="session")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Emulate:
    """Kernels of a capability (75 or 80) and a dtype, perhaps of a changed source."""
    if COMPILER is None:
        pytest.skip("the kernels are run on the CPU by compiling them with g++, which is not there")

    @cache
    def compiled(capability: int, dtype: torch.dtype, source: str | None = None) -> EmulatedKernels:
        return EmulatedKernels(tmp_path_factory.mktemp("emulated"), capability, dtype, source)

    return compiled
