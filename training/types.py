"""What crosses between data, readers and the trainer. Knows no model, file or optimizer.

Flow of a step: questions -> Example (rendered, options in the order shown) -> `Reader.accumulate_gradients`
-> the trainer clips and steps. A reader is a model with what is trained of it, wherever its weights are:
resident on a device, streamed through it a layer at a time, or an encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from strata.engine.types import Prompt, Question

if TYPE_CHECKING:
    # The flags of `strata train` are made of what stands on these types, and --help has to be quick.
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One question to learn from, or to evaluate on.

    Attributes:
        prompt: rendered for the task; `prompt.question.options` are in the order that is shown. Task lm: one
            branch, whose targets are the tokens to predict. Encoders read `prompt.question` alone.
        labels: [O] float64, the probability each option should get; they add up to 1. One-hot unless they
            come from another model's scores, not yet smoothed. Task lm: [1].
        weights: [O] float64, how much each label counts in the loss of task classify; None for all alike.
    """

    prompt: Prompt
    labels: np.ndarray
    weights: np.ndarray | None = None

    @property
    def class_weights(self) -> np.ndarray:
        """[O] the weights, ones where there are none."""
        return np.ones(len(self.labels)) if self.weights is None else self.weights


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters by name that share a learning rate: `base_lr` times `scale`."""

    parameters: Mapping[str, torch.nn.Parameter]
    scale: float


class Renderer(Protocol):
    """Writes questions as a model reads them."""

    def render(self, questions: Sequence[Question]) -> list[Prompt]:
        """Prompts of questions, options as they stand; what `Example.prompt` is made of."""
        ...


class Reader(Renderer, Protocol):
    """A model that learns to score options."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        ...

    def accumulate_gradients(self, batch: Sequence[Example], *, seed: int) -> float:
        """Adds the gradient of the batch's mean loss to the parameters' `grad`; returns that loss.

        Args:
            batch: all examples of an optimizer step that this process computes.
            seed: of everything random in it (dropout); the same seed repeats the step exactly.
        """
        ...

    def score(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Scores [O] float64 of each example, without dropout or gradients; lm: [1] mean log-probability."""
        ...

    def loss(self, scores: Sequence[np.ndarray], examples: Sequence[Example]) -> float:
        """The task's mean loss of scores that `score` gave, without label smoothing."""
        ...

    def parameter_groups(self) -> Iterable[ParameterGroup]:
        """What is trained."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what was trained so that others can load it: PEFT's layout, or a whole checkpoint."""
        ...
