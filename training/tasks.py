"""What can be learned: the tasks, the head that scores each, and what its loss is a mean over.

Knows no model and no loss, and loads no torch: the flags of `strata train` name a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from strata.training.types import Example

Task = Literal["binary", "contrast", "choice", "letters", "lm", "multiple-choice", "classify"]
"""binary and contrast: BCE, a sample an option; choice and letters: cross-entropy over a question's options;
lm: next tokens of passages; multiple-choice: an encoder's cross-entropy over options; classify: cross-entropy
over the labels of a text."""

HEADS: Mapping[Task, str] = {
    "binary": "binary",
    "contrast": "contrast",
    "choice": "binary",
    "letters": "letters",
    "lm": "loglik",
    "classify": "classify",
}
"""The head that scores what a decoder's task trains."""


def trains_classifier(task: Task) -> bool:
    """Whether a decoder's task trains a classifier on its readouts, and not its vocabulary projection."""
    return HEADS.get(task) in ("binary", "contrast", "classify")


def count_units(task: Task, examples: Sequence[Example]) -> float:
    """What the summed loss of a batch is divided by: its options (BCE), tokens (lm) or questions.

    Texts to classify count as much as their labels weigh, as in torch's CrossEntropyLoss with weights.
    """
    if task == "classify":
        return sum(float(example.labels @ example.class_weights) for example in examples)
    if task == "lm":
        return sum(len(branch.targets) for example in examples for branch in example.prompt.branches)
    if task in ("binary", "contrast"):
        return sum(len(example.labels) for example in examples)
    return len(examples)
