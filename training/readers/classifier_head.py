"""The classifier on a decoder's readouts: its width, its first numbers, its name. Knows no adapter.

It is kept in float32, whatever the base model computes in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from strata.engine.adapters.adapter_config import WEIGHTS_NAME
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.safetensors_file import read_header
from strata.engine.weights.tensor_reader import TensorReader
from strata.training.config import TrainConfig
from strata.training.label_names import label_names
from strata.training.tasks import Task

HEAD_STD = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredScore:
    """A classifier that training starts from: weight [labels, width] and bias [labels], float32."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


def stored_score(config: TrainConfig, checkpoint: Checkpoint) -> StoredScore | None:
    """The classifier that a checkpoint holds, where it has the shape that the task needs, and its labels."""
    stored = checkpoint.weights.get("score.weight")
    width, labels = score_width(config.task, checkpoint.config.hidden_size), label_names(config)
    if stored is None or stored.parts[0][0].shape != (len(labels) or 1, width):
        return None
    named = getattr(checkpoint.config, "id2label", None) or {}
    if labels and labels != tuple(named[index] for index in sorted(named)):
        return None
    reader = TensorReader()
    bias = None
    if "score.bias" in checkpoint.weights:
        bias = checkpoint.require_rows("score.bias").read(reader).float().reshape(-1)
    return StoredScore(weight=checkpoint.require_rows("score.weight").read(reader).float(), bias=bias)


def brings_bias(adapter: Path | None) -> bool:
    """Whether the classifier of an adapter to start from has a bias, which PEFT would else pass over."""
    if adapter is None or not (adapter / WEIGHTS_NAME).is_file():
        return False
    return any(name.endswith("score.bias") for name in read_header(adapter / WEIGHTS_NAME))


def make_score(
    seed: int, width: int, stored: StoredScore | None, *, num_labels: int = 1, bias: bool = False
) -> nn.Linear:
    """The classifier [num_labels, width] in float32.

    Args:
        seed: of the small random numbers where none is stored.
        width: of what it reads.
        stored: the one to start from.
        num_labels: its rows.
        bias: whether it has a bias, which is 0 at first, even if the stored one has none.
    """
    if stored is None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(num_labels, width, generator=generator) * HEAD_STD / math.sqrt(width / 1024)
        stored = StoredScore(weight=drawn)
    score = nn.Linear(width, num_labels, bias=bias or stored.bias is not None)
    score.weight = nn.Parameter(stored.weight)
    if score.bias is not None:
        score.bias = nn.Parameter(torch.zeros(num_labels) if stored.bias is None else stored.bias)
    return score


def trained_score(base: nn.Module) -> nn.Module:
    """The classifier of a model that learns: PEFT keeps a copy of it beside the one it found."""
    score = base.get_submodule("score")
    modules = getattr(score, "modules_to_save", None)
    return score if modules is None else modules["default"]


def score_width(task: Task, hidden_size: int) -> int:
    """How many numbers the classifier of a task reads of an option."""
    return 2 * hidden_size if task == "contrast" else hidden_size


def is_score(name: str) -> bool:
    """Whether a weight is the classifier's, by its name in the base model or in PEFT's around it."""
    return ".score." in f".{name}"
