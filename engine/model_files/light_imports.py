"""Keeps out of a process what transformers imports as it starts and scoring never uses.

Where they are installed it imports SciPy's optimizers (for losses of object detection), distributed tensors
(with SymPy), and TorchDynamo for a few decorators; and it reads all its files twice to know their names: a
third of the time to the first layer. Its own switches say that a package is absent; they are turned before
anything asks, for the whole process. So this is for the program `strata`, never for a user of the library.

Knows transformers 5.0 to 5.23. What a version does not have is left out, and that version starts more slowly.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

DYNAMO = "torch._dynamo"
AVAILABILITY = "transformers.utils.import_utils"
SWITCHES = ("is_scipy_available", "is_torch_distributed_available")


def import_lightly() -> None:
    """Has transformers, once it is imported, leave out what scoring never uses; imports nothing itself."""
    sys.meta_path.insert(0, _Watch())


class _Watch(importlib.abc.MetaPathFinder):
    """Finds transformers' modules where they are, to be run with a stand-in for TorchDynamo."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("transformers."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = functools.partial(_run_lightly, loader.exec_module)
        return spec


def _run_lightly(run: Callable[[Any], None], module: Any) -> None:
    with _without_dynamo():
        run(module)
    if module.__name__ == AVAILABILITY:
        for name in SWITCHES:
            if hasattr(module, name):
                setattr(module, name, lambda: False)
        # It remembers what is in 128 folders and has 500 of them, so it has forgotten all when it asks again.
        read_exports: Any = getattr(module, "create_import_structure_from_path", None)
        if hasattr(read_exports, "__wrapped__"):
            module.create_import_structure_from_path = functools.cache(read_exports.__wrapped__)


@contextmanager
def _without_dynamo() -> Iterator[None]:
    """TorchDynamo is asked only to mark functions that it shall not compile, and here it compiles nothing."""
    import torch

    if DYNAMO in sys.modules:
        yield
        return
    sys.modules[DYNAMO] = torch._dynamo = stand_in = _Marks(DYNAMO)
    # So that its modules that do compute something can be imported alone.
    stand_in.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    try:
        yield
    finally:
        del sys.modules[DYNAMO], torch._dynamo


class _Marks(ModuleType):
    """In TorchDynamo's place: decorators, with arguments or without, that leave functions as they are."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda function=None, *_, **__: function or (lambda inner: inner)
