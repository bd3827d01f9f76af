"""AdamW over a reader's parameters, and what happens to gradients before its step. Knows no data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from strata.training.types import ParameterGroup


def build_optimizer(groups: Iterable[ParameterGroup], *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); each of its groups keeps its `scale` of the learning rate.

    Matrices decay; vectors (biases, norms) do not.
    """
    torch_groups = []
    for group in groups:
        tensors = list(group.parameters.values())
        for is_matrix in (True, False):
            alike = [tensor for tensor in tensors if (tensor.dim() >= 2) == is_matrix]
            if alike:
                decay = weight_decay if is_matrix else 0.0
                torch_groups.append({"params": alike, "scale": group.scale, "weight_decay": decay})
    return torch.optim.AdamW(torch_groups, lr=0.0)


def parameters_by_name(groups: Iterable[ParameterGroup]) -> dict[str, torch.nn.Parameter]:
    """All parameters of the groups.

    Raises:
        ValueError: a name that two groups have, or nothing to train.
    """
    parameters: dict[str, torch.nn.Parameter] = {}
    for group in groups:
        for name, parameter in group.parameters.items():
            if name in parameters:
                raise ValueError(f"parameter {name!r} is in two groups; expected each once")
            parameters[name] = parameter
    if not parameters:
        raise ValueError("expected parameters to train; the reader has none")
    return parameters


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets every group's rate: its scale of the given one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def clip_gradients(parameters: Mapping[str, torch.nn.Parameter], max_norm: float, step: int) -> float:
    """Scales all gradients down to a joint L2 norm of `max_norm` (0: leaves them); returns their norm before.

    Args:
        parameters: all with a gradient.
        max_norm: the longest norm left.
        step: counted from one, for messages.

    Raises:
        FloatingPointError: a gradient is not finite.
    """
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not torch.isfinite(norm):
        name = next(
            (
                name
                for name, parameter in parameters.items()
                if parameter.grad is not None and not parameter.grad.isfinite().all()
            ),
            "all parameters together",
        )
        raise FloatingPointError(
            f"step {step}: the gradient of {name} is not finite; "
            "try a lower --learning-rate or --dtype float32"
        )
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), max_norm, norm)
    return float(norm)
