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
from strata.training.label_names import label_names
from strata.training.tasks import Task

HEAD_STD = 0.02


def stored_score(config: TrainConfig, checkpoint: Checkpoint) -> torch.Tensor | None:
    """The classifier that a checkpoint holds, where it has the shape that the task needs, and its labels.

    One with a bias is left: what is trained has none, as in transformers.
    """
    stored = checkpoint.weights.get("score.weight")
    width, labels = score_width(config.task, checkpoint.config.hidden_size), label_names(config)
    if stored is None or "score.bias" in checkpoint.weights:
        return None
    if stored.parts[0][0].shape != (len(labels) or 1, width):
        return None
    named = getattr(checkpoint.config, "id2label", None) or {}
    if labels and labels != tuple(named[index] for index in sorted(named)):
        return None
    return checkpoint.require_rows("score.weight").read(TensorReader()).float()


def make_score(seed: int, width: int, stored: torch.Tensor | None, *, num_labels: int = 1) -> nn.Linear:
    """The classifier [num_labels, width] in float32, small random numbers where none is stored."""
    score = nn.Linear(width, num_labels, bias=False)
    if stored is None:
        generator = torch.Generator().manual_seed(seed)
        stored = torch.randn(num_labels, width, generator=generator) * HEAD_STD / math.sqrt(width / 1024)
    score.weight = nn.Parameter(stored)
    return score


def score_width(task: Task, hidden_size: int) -> int:
    """How many numbers the classifier of a task reads of an option."""
    return 2 * hidden_size if task == "contrast" else hidden_size


def is_score(name: str) -> bool:
    """Whether a weight is the classifier's, by its name in the base model or in PEFT's around it."""
    return ".score." in f".{name}"
