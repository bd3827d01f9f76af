"""Tensors of a simulated device: they claim to be on cuda:N and hold a CPU tensor with their values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .memory import Block, block_of, make_block, span_of
from .streams import Stream, current_stream

PYTHON_NUMBERS = {
    torch.Tensor.item,
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__int__,
    torch.Tensor.__index__,
    torch.Tensor.tolist,
}


class DeviceTensor(torch.Tensor):
    """A tensor on a simulated device.

    Attributes:
        values: the CPU tensor that holds its values.
        block: the allocation that it lies in.
    """

    values: torch.Tensor
    block: Block

    @staticmethod
    def __new__(cls, values: torch.Tensor, device: torch.device, block: Block) -> DeviceTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=device,
            requires_grad=False,
        )
        tensor.values, tensor.block = values, block
        return tensor

    def __repr__(self, **settings: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = self.detach().clone()
        if getattr(self, "_is_param", False):
            copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied

    def record_stream(self, stream: Stream) -> None:
        """Its memory is not given to others before what the stream has queued by then is done."""
        self.block.recorded.add(stream)

    def access(self, stream: Stream, *, is_write: bool) -> None:
        """A stream reads or writes the tensor."""
        self.block.access(stream, span_of(self.values), is_write=is_write)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PYTHON_NUMBERS:
            tensor = args[0]
            stream = current_stream(tensor.device).launch()
            tensor.access(stream, is_write=False)
            stream.hold_host(f"Tensor.{func.__name__}")
            return func(tensor.values, *args[1:], **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .operations import dispatch

        return dispatch(func, args, kwargs or {})


def on_device(values: torch.Tensor, device: torch.device, home: Stream) -> DeviceTensor:
    """A device's tensor of values; views of values that are there already share their block."""
    block = block_of(values)
    if block is None:
        block = make_block(values, home, device)
    return DeviceTensor(values, device, block)


def tensors_in(arguments: Any) -> Iterator[torch.Tensor]:
    """The tensors of nested arguments."""
    if isinstance(arguments, torch.Tensor):
        yield arguments
    elif isinstance(arguments, (list, tuple)):
        for one in arguments:
            yield from tensors_in(one)
    elif isinstance(arguments, dict):
        yield from tensors_in(tuple(arguments.values()))


def values_of(arguments: Any) -> Any:
    """Nested arguments with the values of a device's tensors in their places."""
    if isinstance(arguments, DeviceTensor):
        return arguments.values
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(values_of(one) for one in arguments)
    if isinstance(arguments, dict):
        return {name: values_of(one) for name, one in arguments.items()}
    return arguments
