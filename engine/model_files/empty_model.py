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
    """
    with _NothingDrawnOnMeta(), init_empty_weights(include_buffers=False):
        yield


class _NothingDrawnOnMeta(TorchFunctionMode):
    """Leaves out the drawing of random numbers for tensors that have no memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", None) in DRAWING:
            tensor: torch.Tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)
