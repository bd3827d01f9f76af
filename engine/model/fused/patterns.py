"""Which fused function computes what a module of transformers does: proposed by its form, tried by numbers.

A candidate can be tried: a small copy of the module, with random weights, runs its family's own forward and
the fused one on the same random input. It is what it was proposed as if, in plain torch, every bit is the
same, in float32 and in bfloat16, where an order of roundings shows. Names propose and never decide.
Legend: T tokens, D model dim, N query heads, K kv heads, H head dim, F FFN.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from strata.kernels.elementwise.functions import (
    ACTIVATIONS,
    Activation,
    FusedFunctions,
    NormSettings,
)
from strata.kernels.elementwise.plain import PLAIN

Outputs = tuple[torch.Tensor, ...]

NORM_STYLES = ((0.0, True), (1.0, False), (0.0, False))
"""(offset, rounds first) of Llama's, Gemma's and OLMo 2's."""

GATES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
JOINT_GATES = (("gate_up_proj", "down_proj"),)
ROTARY = "apply_rotary_pos_emb"

SMALL_WIDTH, SMALL_FFN = 8, 24
MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a module raises that cannot be run as it was proposed."""


@dataclass(frozen=True, kw_only=True)
class FusedCandidate:
    """A module as something that a fused function may compute.

    Attributes:
        function: the field of FusedFunctions that it takes.
        trial: (functions, device, dtype) -> what the family's own forward gives, and what the fused one does.
        install: makes a module compute so, for good.
    """

    function: str
    trial: Callable[[FusedFunctions, torch.device, torch.dtype], tuple[Outputs, Outputs]]
    install: Callable[[nn.Module, FusedFunctions], None]


def recognize(module: nn.Module) -> FusedCandidate | None:
    """What a module is, None where no fused function computes the same."""
    for candidate in (*_norms(module), *_gates(module), *_joint_gates(module), *_rotations(module)):
        if all(_same_bits(candidate, dtype) for dtype in (torch.float32, torch.bfloat16)):
            return candidate
    return None


def _same_bits(candidate: FusedCandidate, dtype: torch.dtype) -> bool:
    try:
        own, fused = candidate.trial(PLAIN, torch.device("cpu"), dtype)
    except MISFITS:
        return False
    return all(torch.equal(one, other) for one, other in zip(own, fused, strict=True))


def _draw(*shape: int) -> torch.Tensor:
    """Deterministic normal numbers; other shapes give others."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _norms(module: nn.Module) -> Iterator[FusedCandidate]:
    weight = module._parameters.get("weight")
    if len(module._parameters) != 1 or weight is None or weight.dim() != 1 or module._modules:
        return
    epsilons = {value for value in vars(module).values() if isinstance(value, float)}
    for eps, (offset, rounds_first) in product(sorted(epsilons), NORM_STYLES):
        yield _norm(module, NormSettings(eps=eps, offset=offset, rounds_first=rounds_first))


def _norm(module: nn.Module, settings: NormSettings) -> FusedCandidate:
    def make_forward(functions: FusedFunctions) -> Callable[..., torch.Tensor]:
        compute = functions.rms_norm
        assert compute is not None

        def forward(norm: nn.Module, x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
            weight = norm.get_parameter("weight")
            if rest or named or x.dtype != weight.dtype:
                return type(norm).forward(norm, x, *rest, **named)
            return compute(x, weight, settings)

        return forward

    width = module.get_parameter("weight").shape[0]
    probe = _bare_copy(module)
    probe._parameters = {"weight": nn.Parameter(_draw(width), requires_grad=False)}
    # Of the rows, one is so small that eps counts, one large.
    x = _draw(1, 3, width) * torch.tensor([1.0, 1e-3, 30.0])[:, None]
    return _candidate("rms_norm", probe, x, make_forward)


def _gates(module: nn.Module) -> Iterator[FusedCandidate]:
    for names, activation in product(GATES, ACTIVATIONS):
        if all(isinstance(module._modules.get(name), nn.Linear) for name in names):
            yield _gate(module, names, activation)


def _gate(module: nn.Module, names: tuple[str, str, str], activation: Activation) -> FusedCandidate:
    def make_forward(functions: FusedFunctions) -> Callable[..., torch.Tensor]:
        compute = functions.gated
        assert compute is not None

        def forward(mlp: nn.Module, x: torch.Tensor) -> torch.Tensor:
            gate, up, down = (getattr(mlp, name) for name in names)
            return down(compute(x, gate, up, activation))

        return forward

    sizes = ((SMALL_WIDTH, SMALL_FFN), (SMALL_WIDTH, SMALL_FFN), (SMALL_FFN, SMALL_WIDTH))
    probe = _small_linears(module, dict(zip(names, sizes, strict=True)))
    return _candidate("gated", probe, _draw(1, 5, SMALL_WIDTH), make_forward)


def _joint_gates(module: nn.Module) -> Iterator[FusedCandidate]:
    for names, activation in product(JOINT_GATES, ACTIVATIONS):
        if all(isinstance(module._modules.get(name), nn.Linear) for name in names):
            yield _joint_gate(module, names, activation)


def _joint_gate(module: nn.Module, names: tuple[str, str], activation: Activation) -> FusedCandidate:
    """Gate and up are the halves of one product."""

    def make_forward(functions: FusedFunctions) -> Callable[..., torch.Tensor]:
        compute = functions.gated
        assert compute is not None

        def forward(mlp: nn.Module, x: torch.Tensor) -> torch.Tensor:
            joint, down = (getattr(mlp, name) for name in names)
            gate, up = joint(x).chunk(2, dim=-1)
            return down(compute(x, lambda _: gate, lambda _: up, activation))

        return forward

    sizes = ((SMALL_WIDTH, 2 * SMALL_FFN), (SMALL_FFN, SMALL_WIDTH))
    probe = _small_linears(module, dict(zip(names, sizes, strict=True)))
    return _candidate("gated", probe, _draw(1, 5, SMALL_WIDTH), make_forward)


def _rotations(module: nn.Module) -> Iterator[FusedCandidate]:
    """An attention module whose forward calls the rotation of its Python module by name."""
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType) or ROTARY not in forward.__code__.co_names:
        return
    own = forward.__globals__.get(ROTARY)
    if callable(own):
        yield _rotation(own)


def _rotation(own: Callable[..., Any]) -> FusedCandidate:
    def trial(functions: FusedFunctions, device: torch.device, dtype: torch.dtype) -> tuple[Outputs, Outputs]:
        assert functions.rotate is not None
        drawn = _draw(1, 5, 4, 16).transpose(1, 2), _draw(1, 5, 2, 16).transpose(1, 2)
        inputs = [one.to(device, dtype) for one in (*drawn, _draw(1, 5, 16), _draw(1, 5, 16).flip(1))]
        return tuple(own(*inputs)), tuple(functions.rotate(*inputs))

    def install(attention: nn.Module, functions: FusedFunctions) -> None:
        assert functions.rotate is not None
        _set_forward(attention, _calling(type(attention).forward, rotation_by(own, functions.rotate)))

    return FusedCandidate(function="rotate", trial=trial, install=install)


def rotation_by(own: Callable[..., Any], rotate: Callable[..., Any]) -> Callable[..., Any]:
    """A rotation by `rotate`, but for what it was not tried with, which is the family's."""

    def apply_rotary_pos_emb(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any, **named: Any
    ) -> Any:
        # Of features that are not rotated, some families expect none, and fail.
        as_tried = (
            query.dim() == 4
            and query.shape[0] == cos.shape[0] == 1
            and cos.shape[-1] == query.shape[-1]
            and query.dtype == key.dtype == cos.dtype
        )
        if rest or named or not as_tried:
            return own(query, key, cos, sin, *rest, **named)
        return rotate(query, key, cos, sin)

    return apply_rotary_pos_emb


def _calling(forward: Any, rotation: Callable[..., Any]) -> types.FunctionType:
    """A copy of a forward that finds another rotation under the name; nobody else's changes."""
    copied = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, ROTARY: rotation},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copied.__kwdefaults__ = forward.__kwdefaults__
    return copied


def _candidate(
    function: str,
    probe: nn.Module,
    x: torch.Tensor,
    make_forward: Callable[[FusedFunctions], Callable[..., torch.Tensor]],
) -> FusedCandidate:
    def trial(functions: FusedFunctions, device: torch.device, dtype: torch.dtype) -> tuple[Outputs, Outputs]:
        module, given = copy.deepcopy(probe).to(device, dtype), x.to(device, dtype)
        return (type(module).forward(module, given),), (make_forward(functions)(module, given),)

    def install(module: nn.Module, functions: FusedFunctions) -> None:
        _set_forward(module, make_forward(functions))

    return FusedCandidate(function=function, trial=trial, install=install)


def _set_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    object.__setattr__(module, "forward", types.MethodType(forward, module))


def _bare_copy(module: nn.Module) -> nn.Module:
    """A copy whose weights and children can be replaced without touching the module's."""
    probe = copy.copy(module)
    probe._parameters, probe._modules = dict(module._parameters), dict(module._modules)
    return probe


def _small_linears(module: nn.Module, sizes: dict[str, tuple[int, int]]) -> nn.Module:
    """A copy whose linear modules have these inputs and outputs, and random weights."""
    probe = _bare_copy(module)
    for number, (name, (num_inputs, num_outputs)) in enumerate(sizes.items()):
        linear = nn.Linear(num_inputs, num_outputs, bias=module.get_submodule(name).bias is not None)
        for parameter in linear.parameters():
            parameter.requires_grad_(False).copy_(_draw(*parameter.shape, 1 + number)[..., 0])
        probe._modules[name] = linear
    return probe
