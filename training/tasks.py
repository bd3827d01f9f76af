"""What can be learned: the tasks, the head that scores each, and what its loss is a mean over.

Knows no model and no loss, and loads no torch: the flags of `strata train` name a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from strata.training.types import Example

Task = Literal["binary", "contrast", "choice", "letters", "lm", "multiple-choice"]
"""binary and contrast: BCE, a sample an option; choice and letters: cross-entropy over a question's options;
lm: next tokens of passages; multiple-choice: an encoder's cross-entropy over options."""

HEADS: Mapping[Task, str] = {
    "binary": "binary",
    "contrast": "contrast",
    "choice": "binary",
    "letters": "letters",
    "lm": "loglik",
}
"""The head that scores what a decoder's task trains."""


def trains_classifier(task: Task) -> bool:
    """Whether a decoder's task trains a classifier on its readouts, and not its vocabulary projection."""
    return HEADS[task] in ("binary", "contrast")


def count_units(task: Task, examples: Sequence[Example]) -> int:
    """What the summed loss of a batch is divided by: its options (BCE), tokens (lm) or questions."""
    if task == "lm":
        return sum(len(branch.targets) for example in examples for branch in example.prompt.branches)
    if task in ("binary", "contrast"):
        return sum(len(example.labels) for example in examples)
    return len(examples)
