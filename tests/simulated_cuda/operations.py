"""Every operation of torch on the simulated machine: computed at once on the CPU, its accesses checked.

An operation is queued on the current stream of its device: it reads its inputs there and writes what it
returns or changes. What a card refuses and a CPU does not raises here too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .accounts import ACCOUNTS
from .attention import ATTENTION, attend
from .copies import copy_between
from .memory import host_access, pin, pinned_block
from .streams import current_stream, device_of
from .tensors import DeviceTensor, on_device, tensors_in, values_of

HOST_WAITS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
"""A shape or a Python number depends on values, so the host waits for them."""

NO_KERNELS = {
    "aten::alias",
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_permuted",
    "aten::empty_strided",
    "aten::lift_fresh",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::_unsafe_view",
    "aten::_local_scalar_dense",
}
INDEXED_BY_HOST = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""These take indexes that lie on the host: they are copied, which the host waits for."""


class OneDevice(TorchDispatchMode):
    """Sends every operation of a thread here, factories on a device included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


@dataclass(frozen=True)
class _Kind:
    """What the schema of an operation says of it."""

    name: str
    is_composite: bool
    is_view: bool
    written: tuple[tuple[int, str], ...]
    returned: int


@functools.cache
def _kind_of(func: Any) -> _Kind:
    schema = func._schema
    aliases = [one.alias_info for one in schema.returns]
    return _Kind(
        name=schema.name,
        is_composite=torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"),
        is_view=any(alias is not None and not alias.is_write for alias in aliases),
        written=tuple(
            (index, argument.name)
            for index, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
        returned=sum(alias is not None and alias.is_write for alias in aliases),
    )


def dispatch(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation, on whichever machine its tensors lie."""
    kind = _kind_of(func)
    tensors = [*tensors_in(args), *tensors_in(kwargs)]
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    if ours and kind.name in ATTENTION:
        return attend(kind.name, args, kwargs)
    if not ours and (wanted is None or wanted.type != "cuda"):
        return _on_host(func, kind, args, kwargs, tensors)
    if kind.is_composite:
        with OneDevice():
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    if kind.name in ("aten::_to_copy", "aten::copy_"):
        return copy_between(func, kind.name, args, kwargs)
    return _on_device(func, kind, args, kwargs, tensors, ours, wanted)


def _written(kind: _Kind, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The arguments that an operation writes."""
    given = [kwargs.get(name, args[index] if index < len(args) else None) for index, name in kind.written]
    return list(tensors_in(given))


def _on_host(func: Any, kind: _Kind, args: Any, kwargs: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """An operation on CPU tensors alone; accesses to pinned memory are the calling thread's."""
    if kwargs.get("pin_memory"):
        values = func(*args, **{**kwargs, "pin_memory": False})
        pin(values)
        return values
    if kind.name == "aten::is_pinned":
        return pinned_block(args[0]) is not None
    if not kind.is_view:
        written = {id(tensor) for tensor in _written(kind, args, kwargs)}
        for tensor in tensors:
            if tensor.device.type == "cpu":
                host_access(tensor, is_write=id(tensor) in written)
    return func(*args, **kwargs)


def _on_device(
    func: Any,
    kind: _Kind,
    args: Any,
    kwargs: Any,
    tensors: Sequence[torch.Tensor],
    ours: Sequence[DeviceTensor],
    wanted: torch.device | None,
) -> Any:
    device = wanted or ours[0].device
    is_ours = device.type == "cuda"
    device = device_of(device) if is_ours else device
    stream = current_stream(device if is_ours else ours[0].device)
    _check_devices(kind.name, tensors, ours)
    _check_limits(kind.name, args)
    written = _written(kind, args, kwargs)
    if not kind.is_view:
        stream.launch()
        if kind.name not in NO_KERNELS:
            ACCOUNTS.count(ACCOUNTS.kernels, kind.name)
        for tensor in ours:
            if not any(tensor is one for one in written):
                tensor.access(stream, is_write=False)
    if kind.name in HOST_WAITS or (kind.name in INDEXED_BY_HOST and _waits_for_indexes(args)):
        stream.hold_host(kind.name)
    out = _compute(func, kind.name, values_of(args), _settings_on_cpu(values_of(kwargs)))
    for tensor in written:
        if isinstance(tensor, DeviceTensor):
            tensor.access(stream, is_write=True)
    if kind.returned:
        return written[0] if kind.returned == 1 else tuple(written)
    is_fresh = not kind.is_view and kind.name not in NO_KERNELS

    def wrap(found: Any) -> Any:
        if isinstance(found, torch.Tensor) and is_ours:
            tensor = on_device(found, device, stream)
            if is_fresh:
                tensor.access(stream, is_write=True)
            return tensor
        return type(found)(wrap(one) for one in found) if isinstance(found, (list, tuple)) else found

    return wrap(out)


def _settings_on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    if "device" in kwargs:
        kwargs = {**kwargs, "device": None if kwargs["device"] is None else _played_by(kwargs["device"])}
    return {name: value for name, value in kwargs.items() if name != "pin_memory"}


def _played_by(device: Any) -> torch.device:
    device = torch.device(device)
    return torch.device("cpu") if device.type == "cuda" else device


def _waits_for_indexes(args: Any) -> bool:
    """Masks give a shape that depends on values; indexes from the host have to be there before it goes on."""
    indexes = list(tensors_in(args[1]))
    return any(one.dtype in (torch.bool, torch.uint8) or not isinstance(one, DeviceTensor) for one in indexes)


def _check_devices(name: str, tensors: Sequence[torch.Tensor], ours: Sequence[DeviceTensor]) -> None:
    devices = {str(tensor.device) for tensor in ours}
    if name not in INDEXED_BY_HOST:
        devices |= {str(one.device) for one in tensors if one.dim() and one.device.type == "cpu"}
    if len(devices) > 1:
        raise RuntimeError(
            f"{name}: Expected all tensors to be on the same device, but found {sorted(devices)}"
        )


def _check_limits(name: str, args: Any) -> None:
    """What CUDA's own kernels refuse and those of CPUs do not."""
    if name == "aten::_int_mm":
        rows, inputs, outputs = *args[0].shape, args[1].shape[1]
        if rows <= 16 or inputs % 8 or outputs % 8:
            raise RuntimeError(
                f"_int_mm: {rows} rows, {inputs} inputs, {outputs} outputs; more than 16 rows and multiples "
                "of 8 are expected on CUDA"
            )


def _compute(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The operation on the CPU, in three cases in other words than CUDA takes."""
    if name == "aten::_int_mm":
        return func(args[0].contiguous(), args[1], **kwargs)
    if name == "aten::_softmax" and args[2]:
        return func(args[0].float(), args[1], False, **kwargs)
    if name == "aten::histc" and not args[0].is_floating_point():
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)
