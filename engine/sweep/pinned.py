"""Host memory that CUDA copies from and to without waiting, exactly as large as it is asked for.

torch's own pinned memory is rounded up to a power of two and never given back, so that 17 GiB of it take 32.
Here pages are mapped, then pinned where they lie. Knows nothing of what is kept in them.
Source of the rounding: c10/core/CachingHostAllocator.h, `allocate` (torch 2.8 to 2.13).
"""

from __future__ import annotations

import logging
import mmap
from math import prod

import torch

PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device, not only the current one."""

log = logging.getLogger(__name__)


class HostMemory:
    """A host tensor of one's own, pinned where a device will copy from it.

    Args:
        shape: of the tensor.
        dtype: of the tensor.
        device: that copies; memory for a CPU is not pinned.

    Raises:
        MemoryError: there is not so much.

    Attributes:
        tensor: uninitialised.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        num_bytes = prod(shape) * dtype.itemsize
        self._address: int | None = None
        if device.type != "cuda" or not num_bytes:
            self.tensor = torch.empty(shape, dtype=dtype)
            return
        try:
            pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as refusal:
            raise MemoryError(f"{refusal.strerror}: {num_bytes:,} bytes of host memory") from None
        mapped = torch.frombuffer(pages, dtype=torch.uint8)
        error = int(torch.cuda.cudart().cudaHostRegister(mapped.data_ptr(), num_bytes, PORTABLE))
        if not error:
            self._address = mapped.data_ptr()
            self.tensor = mapped.view(dtype).view(shape)
            return
        _forget_error(device)
        log.warning(
            "cudaHostRegister refused %d bytes (error %d): torch's own pinned memory is used, which is "
            "rounded up to a power of two",
            num_bytes,
            error,
        )
        self.tensor = torch.empty(shape, dtype=dtype, pin_memory=True)

    def close(self) -> None:
        """Gives the memory back; copies from and to it must have ended."""
        if self._address is not None:
            torch.cuda.cudart().cudaHostUnregister(self._address)
            self._address = None
        self.tensor = torch.empty(0, dtype=self.tensor.dtype)


def _forget_error(device: torch.device) -> None:
    """CUDA keeps its last error for the next launch to raise; the launch here takes it away."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        log.debug("after cudaHostRegister: %s", error)
