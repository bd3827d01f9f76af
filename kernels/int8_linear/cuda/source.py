"""The CUDA C++ of the int8 kernels, as NVRTC takes it. Compiles nothing."""

from __future__ import annotations

from pathlib import Path

import torch

SOURCE_FOLDER = Path(__file__).parent
ELEMENTS = {torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT32"}
"""What activations may be, and how the source is told."""

GEMM_TILE = 128
"""Tokens, and outputs, of a block of `int8_gemm`."""
NUM_THREADS = 256
"""Of a block, in both kernels."""


def kernel_source() -> str:
    """Both files in one: nothing is included."""
    names = ("intrinsics.cuh", "kernels.cu")
    return "\n".join((SOURCE_FOLDER / name).read_text(encoding="ascii") for name in names)
