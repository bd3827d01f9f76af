"""Keeps freed host memory from staying with the process. Knows no tensors.

glibc keeps freed blocks of less than 32 MiB in its heap, and steps that free thousands of activations of odd
sizes leave it in pieces: a streamed step of a 7B shape grew by 0.1 GiB a layer until it held twice what it
used. Mapping blocks one by one keeps the process at what it uses (1.8 GiB, not 2.7, over five layers), but
the system then clears every block anew: steps took 1.7 times as long. So it is for those who set a budget.
"""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3
"""Number of the option in glibc's malloc.h."""
MAPPED_BYTES = 1 << 20


def map_large_blocks() -> None:
    """Makes malloc map blocks of 1 MiB and more one by one; does nothing where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
