"""Where this process computes its share of a training run, and in which dtype. Knows no model."""

from __future__ import annotations

import os

import torch

from strata.engine.machine.devices import resolve_dtype
from strata.engine.types import InputError
from strata.training.config import TrainConfig


def choose_device(config: TrainConfig) -> torch.device:
    """The device asked for; `auto` is this process's GPU (its LOCAL_RANK's), else the CPU.

    Raises:
        InputError: a device that is not there.
    """
    name = config.devices
    if name == "auto":
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--devices: {name!r}; expected auto, cpu, or one such as cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--devices: {name!r}: no CUDA here; expected cpu")
    return device


def choose_dtype(config: TrainConfig, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """What a decoder computes in: `auto` is decided as for scoring, so that both are fast on a device.

    Args:
        config: the run's settings.
        stored: dtype of the checkpoint.
        device: from `choose_device`.
    """
    name = "cpu" if device.type == "cpu" else str(device)
    return resolve_dtype(config.dtype, stored, (name,))
