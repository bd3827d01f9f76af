"""The classifier on a decoder's readouts: its width, its first numbers, its name. Knows no adapter.

It is kept in float32, whatever the base model computes in.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.tensor_reader import TensorReader
from strata.training.config import TrainConfig
from strata.training.tasks import Task

HEAD_STD = 0.02


def stored_score(config: TrainConfig, checkpoint: Checkpoint) -> torch.Tensor | None:
    """The classifier that a checkpoint holds, where it is of the width that the task's head needs."""
    stored = checkpoint.weights.get("score.weight")
    width = score_width(config.task, checkpoint.config.hidden_size)
    if stored is None or stored.parts[0][0].shape != (1, width):
        return None
    return checkpoint.require_rows("score.weight").read(TensorReader()).float()


def make_score(seed: int, width: int, stored: torch.Tensor | None) -> nn.Linear:
    """The classifier [1, width] in float32, small random numbers where none is stored."""
    score = nn.Linear(width, 1, bias=False)
    if stored is None:
        generator = torch.Generator().manual_seed(seed)
        stored = torch.randn(1, width, generator=generator) * HEAD_STD / math.sqrt(width / 1024)
    score.weight = nn.Parameter(stored)
    return score


def score_width(task: Task, hidden_size: int) -> int:
    """How many numbers the classifier of a task reads of an option."""
    return 2 * hidden_size if task == "contrast" else hidden_size


def is_score(name: str) -> bool:
    """Whether a weight is the classifier's, by its name in the base model or in PEFT's around it."""
    return ".score." in f".{name}"
