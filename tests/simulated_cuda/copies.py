"""Copies between host and devices: which wait, which do not, and what they read and write where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .accounts import ACCOUNTS
from .memory import pinned_block, span_of
from .settings import SETTINGS
from .streams import current_stream, device_of
from .tensors import DeviceTensor, on_device, values_of


def copy_between(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`copy_`, or `to` another device or dtype, with a device at one end at least."""
    if name == "aten::copy_":
        target, source = args[0], args[1]
        is_async = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        _copy(source, target, is_async=is_async)
        func(values_of(target), values_of(source))
        _corrupt_if_peers_are_broken(source, target)
        return target
    source = args[0]
    is_async = kwargs.get("non_blocking", False)
    device = torch.device(kwargs.get("device") or source.device)
    if device.type == "meta":
        return func(values_of(source), **kwargs)
    device = device_of(device) if device.type == "cuda" else device
    others = {key: one for key, one in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
    values = func(values_of(source), **others)
    if values.untyped_storage()._cdata == values_of(source).untyped_storage()._cdata:
        values = values.clone()
    made = on_device(values, device, current_stream(device)) if device.type == "cuda" else values
    _copy(source, made, is_async=is_async)
    _corrupt_if_peers_are_broken(source, made)
    return made


def _copy(source: torch.Tensor, target: torch.Tensor, *, is_async: bool) -> None:
    if isinstance(source, DeviceTensor) and isinstance(target, DeviceTensor):
        _on_devices(source, target)
    elif isinstance(target, DeviceTensor):
        _upload(source, target, is_async=is_async)
    else:
        assert isinstance(source, DeviceTensor)
        _download(source, target, is_async=is_async)


def _on_devices(source: DeviceTensor, target: DeviceTensor) -> None:
    ACCOUNTS.count(ACCOUNTS.kernels, "copy")
    reading, writing = current_stream(source.device), current_stream(target.device)
    if source.device == target.device:
        source.access(writing.launch(), is_write=False)
        target.access(writing, is_write=True)
        return
    # torch copies in the source's stream, which waits for the target's, and the other way round afterwards.
    reading.wait_event(writing.record_event())
    reading.launch()
    source.access(reading, is_write=False)
    target.access(reading, is_write=True)
    writing.wait_event(reading.record_event())
    target.record_stream(reading)


def _upload(source: torch.Tensor, target: DeviceTensor, *, is_async: bool) -> None:
    stream = current_stream(target.device).launch()
    block = pinned_block(source)
    if block is not None:
        block.access(stream, span_of(source), is_write=False)
    elif source.dim():
        ACCOUNTS.count(ACCOUNTS.pageable_bytes, "to device", source.nbytes)
    target.access(stream, is_write=True)
    # Pageable memory is staged: the host goes on when it has been read, which waits for the stream.
    if (block is None or not is_async) and source.dim():
        if SETTINGS.uploads_wait:
            stream.hold_host("copy to device")
        else:
            ACCOUNTS.count(ACCOUNTS.waits, "copy to device")


def _download(source: DeviceTensor, target: torch.Tensor, *, is_async: bool) -> None:
    stream = current_stream(source.device).launch()
    source.access(stream, is_write=False)
    block = pinned_block(target)
    if block is not None:
        block.access(stream, span_of(target), is_write=True)
    else:
        ACCOUNTS.count(ACCOUNTS.pageable_bytes, "to host", target.nbytes)
    if block is None or not is_async:
        stream.hold_host("copy to host")


def _corrupt_if_peers_are_broken(source: torch.Tensor, target: torch.Tensor) -> None:
    """On some hosts a copy from card to card silently leaves zeros."""
    are_cards = isinstance(source, DeviceTensor) and isinstance(target, DeviceTensor)
    if SETTINGS.peers_are_broken and are_cards and source.device != target.device:
        target.values.zero_()
