"""What tells that memory ran out, whoever ran out of it. Imports no torch: the command line asks it too."""

from __future__ import annotations

SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What torch's RuntimeErrors say of it: CUDA, the CPU's allocator on Linux and Windows, C++ and cuBLAS."""


class MemoryRanOutError(MemoryError):
    """Memory ran out and nothing could be done about it; the message is one line that says what to try."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, NumPy or torch says that host or device memory ran out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def first_sentence(error: BaseException) -> str:
    """What an error says first; torch's go on for many lines."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__
