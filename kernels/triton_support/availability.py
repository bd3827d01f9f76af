"""Whether Triton's kernels can be compiled and launched on a device, found by launching one. Knows no other.

Operators of ours are torch operators of the namespace "strata": a Triton kernel for CUDA, plain torch for
CPUs, shapes for the meta device. So whoever calls one needs not know where its tensors lie.
"""

from __future__ import annotations

import functools
import importlib.util

import torch

OLDEST_CAPABILITY = (7, 5)
"""Compute capability of the oldest cards that the kernels are compiled for in the tests."""

PROBE = torch.library.Library("strata", "FRAGMENT")
PROBE.define("add_one(Tensor x) -> Tensor")


@functools.cache
def why_no_triton(device: torch.device) -> str | None:
    """Why no Triton kernel can run on a device, in words; None where one ran and computed what it should."""
    if device.type != "cuda":
        return f"there are no Triton kernels for {device.type}"
    if (device.index or 0) >= torch.cuda.device_count():
        return f"torch sees no {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"Triton kernels want compute capability 7.5, {device} has {capability[0]}.{capability[1]}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    try:
        found = torch.ops.strata.add_one(torch.arange(3.0).to(device)).tolist()
    # Its launcher is compiled, too: no C compiler, no driver, no room for its cache; each has its own error.
    except Exception as error:
        return f"a Triton kernel could not be launched: {type(error).__name__}: {error}".splitlines()[0]
    return None if found == [1.0, 2.0, 3.0] else f"a Triton kernel gave {found}; expected [1.0, 2.0, 3.0]"


def _add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def _add_one_on_card(x: torch.Tensor) -> torch.Tensor:
    from strata.kernels.triton_support.probe import launch_add_one

    return launch_add_one(x)


PROBE.impl("add_one", _add_one, "CPU")
PROBE.impl("add_one", _add_one_on_card, "CUDA")
