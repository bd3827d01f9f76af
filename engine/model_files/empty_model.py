"""Models built without weights: the modules alone, parameters on the meta device.

Knows no model: transformers builds it inside `empty_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode

DRAWING = ("uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_", "xavier_normal_")
"""Names of tensors' methods, of torch's initialisers and of those that transformers puts in their place."""


@contextmanager
def empty_model() -> Iterator[None]:
    """Has modules that are made meanwhile take no memory for parameters, and no time to initialise them.

    Buffers are computed: for what is computed on the meta device torch imports TorchDynamo and SymPy.
    accelerate alone has each weight made before it is moved to the meta device. Of experts in one tensor
    these can be more bytes than the system promises to anybody, though none of them is ever touched.
    """
    with _NothingMade(), init_empty_weights(include_buffers=False):
        yield


class _NothingMade(TorchFunctionMode):
    """Puts what `torch.empty` makes, of which weights consist, on the meta device; draws nothing for it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        if getattr(func, "__name__", None) in DRAWING:
            tensor: torch.Tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)
