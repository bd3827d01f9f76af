"""The ways to multiply int8 codes. A new one is a file and a line here."""

from __future__ import annotations

from strata.kernels.int8_linear.backend import Int8Backend
from strata.kernels.int8_linear.blocked import IntMmBackend
from strata.kernels.int8_linear.cuda.backend import CudaBackend
from strata.kernels.int8_linear.floats import FloatBackend

BACKENDS: tuple[Int8Backend, ...] = (CudaBackend(), IntMmBackend(), FloatBackend())
"""In the order in which they are taken where nothing is measured."""
