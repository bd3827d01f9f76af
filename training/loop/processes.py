"""Several processes that train the same parameters, each on its share of a batch. Knows no model.

Gradients are averaged after a whole batch, over the trained parameters alone: LoRA's are small, and this
works wherever the frozen weights are. Weighted by what each process computed, the result is that of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.distributed

from strata.training.config import TrainConfig

Item = TypeVar("Item")


class Processes(Protocol):
    """Which process this is; accelerate's PartialState and Accelerator are such objects."""

    @property
    def num_processes(self) -> int:
        """How many share the work."""
        ...

    @property
    def process_index(self) -> int:
        """This one's number, from zero."""
        ...

    @property
    def is_main_process(self) -> bool:
        """Whether this one writes and prints."""
        ...

    def wait_for_everyone(self) -> None:
        """Returns when every process has called it."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """A run in a single process."""

    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True

    def wait_for_everyone(self) -> None:
        """There is nobody to wait for."""


def open_processes(config: TrainConfig) -> Processes:
    """The processes that a launcher (torchrun, accelerate launch) has started, or just this one."""
    # The variable is the launchers' interface; PartialState reads the others itself.
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return OneProcess()
    from accelerate import PartialState

    return PartialState(cpu=config.devices == "cpu")


def close_processes(processes: Processes) -> None:
    """Parts from the other processes, which torch wants to be told."""
    if processes.num_processes > 1:
        torch.distributed.destroy_process_group()


def share_of(items: Sequence[Item], processes: Processes) -> Sequence[Item]:
    """What this process computes of a batch."""
    return items[processes.process_index :: processes.num_processes]


def share_parameters(parameters: Iterable[torch.Tensor], processes: Processes) -> None:
    """Gives every process the main one's values."""
    if processes.num_processes == 1:
        return
    with torch.no_grad():
        for parameter in parameters:
            torch.distributed.broadcast(parameter, src=0)


def average_gradients(
    parameters: Iterable[torch.nn.Parameter], loss: float, weight: float, processes: Processes
) -> float:
    """Replaces gradients by their mean over the processes, weighted; returns that mean of the losses.

    A parameter without a gradient counts as one with a gradient of zeros, and has one afterwards.

    Args:
        parameters: in the same order in every process.
        loss: of this process.
        weight: how much of the batch this process computed; 0 for nothing.
        processes: who takes part.
    """
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if processes.num_processes == 1:
        return loss
    device = parameters[0].device
    sums = torch.tensor([weight, weight * loss], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    total, weighted_loss = sums.tolist()
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.mul_(weight / total)
        torch.distributed.all_reduce(parameter.grad)
    return weighted_loss / total


def gather_shares(share: Sequence[Item], processes: Processes) -> list[Item]:
    """Puts the results of `share_of` of all processes together again, in the order of the whole."""
    if processes.num_processes == 1:
        return list(share)
    shares: list[Sequence[Item]] = [()] * processes.num_processes
    torch.distributed.all_gather_object(shares, list(share))
    by_place = {
        number + row * processes.num_processes: item
        for number, gathered in enumerate(shares)
        for row, item in enumerate(gathered)
    }
    return [by_place[place] for place in sorted(by_place)]
