"""Loads compiled kernels on a card and launches them, through the driver that torch itself runs on.

Knows nothing of what kernels do. Source: CUDA driver API (docs.nvidia.com/cuda/cuda-driver-api).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from strata.kernels.int8_linear.cuda.nvrtc import KernelsUnavailableError

Argument = torch.Tensor | int | float | None


class LoadedKernels:
    """The kernels of a cubin on one card."""

    def __init__(self, cubin: bytes, device: torch.device, names: Sequence[str]) -> None:
        """Loads them.

        Raises:
            KernelsUnavailableError: there is no driver, or it does not take them.
        """
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise KernelsUnavailableError(f"the CUDA driver: {error}") from None
        torch.cuda.init()
        self._device = device
        self._context = self._primary_context(device.index or 0)
        self._functions: dict[str, ctypes.c_void_p] = {}
        module = ctypes.c_void_p()
        self._check(self._driver.cuCtxPushCurrent_v2(self._context))
        try:
            self._check(self._driver.cuModuleLoadData(ctypes.byref(module), cubin))
            for name in names:
                function = ctypes.c_void_p()
                self._check(self._driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
                self._functions[name] = function
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def launch(self, name: str, num_blocks: int, num_threads: int, arguments: Sequence[Argument]) -> None:
        """Launches a kernel in torch's current stream; None is a null pointer, a float is of 32 bits.

        Raises:
            RuntimeError: the driver refuses the launch.
        """
        values = [_as_c(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        grid, block = (num_blocks, 1, 1), (num_threads, 1, 1)
        # A thread that has not yet called CUDA has no context.
        self._check(self._driver.cuCtxPushCurrent_v2(self._context))
        try:
            status = self._driver.cuLaunchKernel(
                self._functions[name], *grid, *block, 0, stream, pointers, None
            )
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        if status:
            raise RuntimeError(f"CUDA kernel {name}: {self._message(status)}")

    def _primary_context(self, index: int) -> ctypes.c_void_p:
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._check(self._driver.cuDeviceGet(ctypes.byref(device), index))
        self._check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
        return context

    def _message(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._driver.cuGetErrorString(status, ctypes.byref(text))
        return text.value.decode() if text.value else f"error {status}"

    def _check(self, status: int) -> None:
        if status:
            raise KernelsUnavailableError(f"the CUDA driver: {self._message(status)}")


def _as_c(argument: Argument) -> ctypes.c_void_p | ctypes.c_int | ctypes.c_float:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_float(argument)
