"""The backends of prefix attention, and the choice of one. A new backend is a file and a line here."""

from __future__ import annotations

from strata.kernels.prefix_attention.backend import AttentionRequest, Backend
from strata.kernels.prefix_attention.blocked import BLOCKED_ON_CPU, BLOCKED_ON_CUDA
from strata.kernels.prefix_attention.differentiable import DIFFERENTIABLE_ON_CPU, DIFFERENTIABLE_ON_CUDA
from strata.kernels.prefix_attention.flash_cpu import FlashOnCpu
from strata.kernels.prefix_attention.sdpa import SdpaBackend
from strata.kernels.prefix_attention.varlen import EFFICIENT, FLASH, FLASH_ATTN

BACKENDS: list[Backend] = [
    FLASH_ATTN,
    FLASH,
    EFFICIENT,
    SdpaBackend(),
    FlashOnCpu(),
    BLOCKED_ON_CPU,
    BLOCKED_ON_CUDA,
    DIFFERENTIABLE_ON_CPU,
    DIFFERENTIABLE_ON_CUDA,
]
"""In order of preference."""


def choose_backend(request: AttentionRequest) -> Backend:
    """The first backend that takes a request.

    Raises:
        ValueError: none does.
    """
    for backend in BACKENDS:
        if backend.takes(request):
            return backend
    names = ", ".join(backend.name for backend in BACKENDS)
    raise ValueError(f"no attention backend takes {request}; there are {names}")
