"""Which examples a step learns from, and in which order options are shown. Pure functions of seed and step.

A resumed run needs the step number and nothing else to go on with the same batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from strata.engine.types import Question

# Keep the random streams of one seed apart.
_ORDER, _OPTIONS, _HELD_OUT = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """Batches of `batch_size` of the examples 0 .. num_examples - 1, every epoch in another order.

    The last batch of an epoch is the smaller one that is left.
    """

    num_examples: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold every example once."""
        return math.ceil(self.num_examples / self.batch_size)

    def count_steps(self, *, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps of a run: `max_steps`, or else so many epochs, at least one step."""
        if max_steps is not None:
            return max_steps
        # Rounded first: 0.1 * 30 is a little more than 3.
        return max(1, math.ceil(round(epochs * self.steps_per_epoch, 6)))

    def batch(self, step: int) -> tuple[int, list[int]]:
        """Epoch and example indices of a step, both counted from zero."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.num_examples)
        first = number * self.batch_size
        return epoch, order[first : first + self.batch_size].tolist()


def step_seed(seed: int, step: int, process: int) -> int:
    """A 63-bit seed of what is random in one step of one process, such as dropout."""
    digest = hashlib.sha256(f"{seed} {step} {process}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def shuffle_options(
    question: Question, labels: np.ndarray, *, seed: int, epoch: int, index: int
) -> tuple[Question, np.ndarray]:
    """The question with its options in this epoch's order, its answer and labels [O] along with them.

    Args:
        question: as the file has it.
        labels: [O] float64.
        seed: of the run.
        epoch: from zero.
        index: of the question in the training set.
    """
    order = np.random.default_rng([seed, _OPTIONS, epoch, index]).permutation(len(question.options))
    options = tuple(question.options[place] for place in order)
    answer = None if question.answer is None else order.tolist().index(question.answer)
    return replace(question, options=options, answer=answer), labels[order]


def hold_out(num_examples: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and indices held out, each ascending; at least one on both sides.

    Raises:
        ValueError: fewer than two examples, which cannot be split.
    """
    if num_examples < 2:
        raise ValueError(f"expected two examples or more to hold some out; got {num_examples}")
    num_held_out = min(max(1, round(share * num_examples)), num_examples - 1)
    order: Sequence[int] = np.random.default_rng([seed, _HELD_OUT]).permutation(num_examples).tolist()
    return sorted(order[num_held_out:]), sorted(order[:num_held_out])
