"""What float16 does not hold: how a layer computes in float32, and how its states wait in float16 after all.

A layer's weights are widened a matrix at a time, as each is used. Hidden states beyond float16's range wait
as float16 rows and a power of two a row, which is exact but for the rounding that float16 means anyway: so an
overflow takes no memory that the plan does not know. Knows nothing of stores or lanes.
Shape suffixes: T rows, D model dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear

from strata.engine.model.decoder import Decoder

Found = tuple[torch.Tensor | None, torch.Tensor | None]
"""Hidden states [T, D] or readouts that a layer gives, and its keys and values [2, K, C, H]."""

Attempt = Callable[[torch.Tensor], Found]

HELD_EXPONENT = 15
"""Numbers below 2^15 are finite in float16, whose largest is 65504."""


@contextmanager
def in_float32(decoder: Decoder, layer: int, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A layer that computes in float32, for hidden states in float32.

    Args:
        decoder: whose layer.
        layer: which; these weights are assigned to it, before and after.
        weights: of the layer.
    """
    linears = {
        path: module
        for path, module in decoder.layers[layer].named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    }
    one_at_a_time = {f"{path}.{leaf}" for path in linears for leaf in ("weight", "bias")}
    widened = {
        name: weight.float() if weight.is_floating_point() else weight
        for name, weight in weights.items()
        if name not in one_at_a_time
    }
    decoder.assign_layer(layer, widened)
    for module in linears.values():
        module.__dict__["forward"] = partial(_linear_in_float32, module)
    try:
        yield
    finally:
        for module in linears.values():
            del module.__dict__["forward"]
        decoder.assign_layer(layer, weights)


def _linear_in_float32(module: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    bias = None if module.bias is None else module.bias.float()
    return linear(states, module.weight.float(), bias)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every element is finite; one pass, no temporary of the tensor's size."""
    return math.isfinite(tensor.sum(dtype=torch.float32).item())


def is_all_finite(found: Found) -> bool:
    """Whether states are, and where there are none, keys and values."""
    states, key_values = found
    checked = key_values if states is None else states
    assert checked is not None
    return is_finite(checked)


def rows_in_float16(states_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Finite float32 states as float16 rows, and the powers of two [T, 1] that they are to be multiplied by.

    The factors are None where all are 1.
    """
    _, exponents_T1 = torch.frexp(states_TD.abs().amax(dim=1, keepdim=True))
    shifts_T1 = (exponents_T1 - HELD_EXPONENT).clamp_min_(0)
    if not shifts_T1.any():
        return states_TD.to(torch.float16), None
    factors_T1 = torch.exp2(shifts_T1.float())
    return (states_TD / factors_T1).to(torch.float16), factors_T1


def narrow(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in a dtype that holds it; itself where the dtype does not."""
    narrowed = tensor.to(dtype)
    return narrowed if is_finite(narrowed) else tensor


def why_not_finite(weights: Mapping[str, torch.Tensor]) -> str:
    """What to say of a layer whose states are not finite even in float32."""
    told = "hidden states are not finite, not even in float32"
    for name, weight in weights.items():
        if weight.dtype == torch.float16 and not is_finite(weight):
            return (
                f"{told}: {name} is not finite in float16, whose largest number is 65504; expected --dtype "
                "float32 or bfloat16 for stored weights beyond it, unless these hold NaN or inf"
            )
    return f"{told}: weights hold NaN or inf"
