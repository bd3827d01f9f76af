"""Bugs of ordering, planted in the engine one at a time, so that it is known that the checker sees them.

A bug is a change of the source of one function. Where that source no longer holds what is changed, planting
fails, so that a bug moves along with the code.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class PlantedBug:
    """`old` becomes `new` in a function of strata.engine.sweep, named as "module:Class.method" is."""

    function: str
    old: str
    new: str


BUGS = {
    "a worker does not wait for its weights' copy": PlantedBug(
        "layer_stream:LayerStream.take", "stream.wait_event(placed.copied[device])", "pass"
    ),
    "a buffer is filled while it is being used": PlantedBug(
        "layer_stream:LayerStream._take_slot", "event.synchronize()", "pass"
    ),
    "nothing says when a layer was used last": PlantedBug(
        "layer_stream:LayerStream.give_back",
        "placed.slot.computed.append(",
        "(",
    ),
    "only the first device is waited for": PlantedBug(
        "layer_stream:LayerStream.give_back", 'if device.type == "cuda":', "if device.index == 0:"
    ),
    "weights are freed while they are being used": PlantedBug(
        "layer_stream:LayerStream.take", "weight.record_stream(stream)", "pass"
    ),
    "a copy is said to be done before it is queued": PlantedBug(
        "layer_stream:LayerStream._place",
        "placed.weights[device] = self._loader.decode(layer, self._copy_raw(layer, raw, device))",
        "placed.copied[device] = self._streams[device].record_event(); "
        "placed.weights[device] = self._loader.decode(layer, self._copy_raw(layer, raw, device)); "
        "continue",
    ),
    "shared keys are published before they are there": PlantedBug(
        "shared_keys:_on_host", "torch.cuda.current_stream(states.device).synchronize()", "pass"
    ),
    "hidden states are read on a stream of their own": PlantedBug(
        "hidden_store:MemoryStore.read",
        "return self",
        "with torch.cuda.stream(torch.cuda.Stream(self._device)): return self",
    ),
    "readouts are not waited for": PlantedBug(
        "lane_worker:Readouts.put",
        "readouts.to(rows.dtype).cpu()",
        "torch.empty(readouts.shape, dtype=rows.dtype, pin_memory=True).copy_(readouts, non_blocking=True)",
    ),
}


@contextmanager
def planted(bug: PlantedBug) -> Iterator[None]:
    """The engine with a bug."""
    module_name, path = bug.function.split(":")
    module = importlib.import_module(f"strata.engine.sweep.{module_name}")
    *classes, method = path.split(".")
    owner = getattr(module, classes[0]) if classes else module
    original = owner.__dict__[method]
    source = textwrap.dedent(inspect.getsource(original))
    assert bug.old in source, f"{bug.function} holds no {bug.old!r} any more"
    scope: dict[str, object] = {}
    source = "from __future__ import annotations\n" + source.replace(bug.old, bug.new)
    exec(compile(source, sys.modules[module.__name__].__file__ or "", "exec"), module.__dict__, scope)
    setattr(owner, method, scope[method])
    try:
        yield
    finally:
        setattr(owner, method, original)
